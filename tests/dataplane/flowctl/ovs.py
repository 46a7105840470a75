"""A real ovs-vswitchd with dummy datapath in a directory of its own: no root, no system OVS."""

import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
AVAILABLE = SCHEMA.exists() and shutil.which("ovs-vswitchd") is not None


class Ovs:
    """One ovsdb-server and one ovs-vswitchd."""

    def __init__(self) -> None:
        self.dir = Path(tempfile.mkdtemp(prefix="dunlin-fc-"))
        self.env = {
            **os.environ,
            "OVS_RUNDIR": str(self.dir),
            "OVS_DBDIR": str(self.dir),
            "OVS_LOGDIR": str(self.dir),
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self._db = f"unix:{self.dir}/db.sock"

    def start(self) -> "Ovs":
        """Create the database and run both daemons."""
        database = self.dir / "conf.db"
        subprocess.run(["ovsdb-tool", "create", database, SCHEMA], check=True, env=self.env)
        self._run("ovsdb-server", str(database), f"--remote=p{self._db}", "--unixctl=ovsdb.ctl")
        self.vsctl("--no-wait", "init")
        self._run(
            "ovs-vswitchd", self._db, "--enable-dummy", "--unixctl=vswitchd.ctl", "-vconsole:off"
        )
        return self

    def _run(self, name: str, *args: str) -> None:
        command = [name, *args, f"--log-file={self.dir}/{name}.log"]
        self._processes.append(
            subprocess.Popen(command, env=self.env, cwd=self.dir, stderr=subprocess.DEVNULL)
        )

    def vsctl(self, *args: str) -> str:
        """ovs-vsctl."""
        command = ["ovs-vsctl", f"--db={self._db}", "--timeout=20", "--retry", *args]
        return subprocess.run(
            command, check=True, env=self.env, capture_output=True, text=True
        ).stdout.strip()

    def ofctl(self, *args: str, stdin: str | None = None) -> str:
        """ovs-ofctl with OpenFlow 1.5."""
        done = subprocess.run(
            ["ovs-ofctl", "-O", "OpenFlow15", *args],
            check=False,
            env=self.env,
            capture_output=True,
            text=True,
            input=stdin,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def bridge(self, name: str, dpid: int, *controllers: str) -> None:
        """A bridge as the agent makes it, with ports 1 … 3."""
        self.vsctl(
            *("add-br", name, "--", "set", "bridge", name, "datapath_type=dummy"),
            *("fail_mode=secure", "protocols=OpenFlow15"),
            f"other-config:datapath-id={dpid:016x}",
        )
        for port in (1, 2, 3):
            self.vsctl(
                *("add-port", name, f"{name}-p{port}", "--", "set", "interface", f"{name}-p{port}"),
                *("type=dummy", f"ofport_request={port}"),
            )
        self.controllers(name, *controllers)

    def controllers(self, name: str, *controllers: str) -> None:
        """Where the bridge connects to."""
        if not controllers:
            self.vsctl("del-controller", name)
            return
        made = []
        for number, target in enumerate(controllers):
            made += ["--", f"--id=@c{number}", "create", "controller", f'target="{target}"']
            made += ["connection_mode=out-of-band", "max_backoff=1000"]
        names = ",".join(f"@c{number}" for number in range(len(controllers)))
        self.vsctl(*made[1:], "--", "set", "bridge", name, f"controller=[{names}]")

    def flows(self, name: str) -> list[str]:
        """Flows without their counters, sorted."""
        text = self.ofctl("--no-stats", "--no-names", "dump-flows", name)
        return sorted(
            line.strip() for line in text.splitlines() if "=" in line and "OFPST" not in line
        )

    def groups(self, name: str) -> list[str]:
        """Groups, sorted."""
        text = self.ofctl("--no-names", "dump-groups", name)
        return sorted(line.strip() for line in text.splitlines() if "group_id" in line)

    def log(self) -> str:
        """What vswitchd logged as WARN or worse."""
        lines = (self.dir / "ovs-vswitchd.log").read_text().splitlines()
        return "\n".join(line for line in lines if "|WARN|" in line or "|ERR|" in line)

    def log_without_connections(self) -> str:
        """`log` but for lost OpenFlow connections, which tests cause themselves."""
        return "\n".join(line for line in self.log().splitlines() if "rconn" not in line)

    def pause(self, *, stopped: bool) -> None:
        """SIGSTOP or SIGCONT vswitchd."""
        self._processes[1].send_signal(signal.SIGSTOP if stopped else signal.SIGCONT)

    def stop(self) -> None:
        """End both and remove the directory."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        shutil.rmtree(self.dir)
