"""A real Open vSwitch of the bench's own: netdev datapath, in a network namespace of its own."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.measure import Unavailable
from dunlin_lab import links, netns

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
TIMEOUT_S = 30.0


class Ovs:
    """One ovsdb-server and one ovs-vswitchd; `directory` is their OVS_RUNDIR."""

    def __init__(self, directory: Path, namespace: Path, more: Mapping[str, str]) -> None:
        self.directory = directory
        self.namespace = namespace
        names = ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR")
        self._env = os.environ | dict.fromkeys(names, str(directory))
        self._more = dict(more)
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *, userspace_tso: bool) -> None:
        """Both daemons; returns when ovs-vswitchd has taken over its database."""
        self._run("ovsdb-tool", "create", str(self.directory / "conf.db"), str(SCHEMA))
        self._daemon("ovsdb-server", str(self.directory / "conf.db"), "--remote=punix:db.sock")
        deadline = time.monotonic() + TIMEOUT_S
        while not (self.directory / "db.sock").exists():
            if time.monotonic() > deadline:
                raise Unavailable("ovsdb-server does not start")
            time.sleep(0.005)
        self.vsctl("--no-wait", "init")
        tso = f"other_config:userspace-tso-enable={str(userspace_tso).lower()}"
        self.vsctl("--no-wait", "set", "Open_vSwitch", ".", tso)
        self._env |= self._more
        self._daemon("ovs-vswitchd", f"unix:{self.directory}/db.sock", "--disable-system")
        for name in self._more:
            del self._env[name]
        self.vsctl("show")

    def _daemon(self, *command: str) -> None:
        rest = ("--no-chdir", f"--log-file={self.directory}/{command[0]}.log", "--pidfile")
        self._processes.append(
            netns.run_in(
                self.namespace,
                lambda: subprocess.Popen(
                    [*command, *rest, "-vconsole:off", "-vsyslog:off"],
                    env=self._env, cwd=self.directory, stderr=subprocess.DEVNULL,
                ),
            )
        )  # fmt: skip

    def stop(self) -> None:
        """End both."""
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in self._processes:
            process.wait(TIMEOUT_S)

    def _run(self, *command: str) -> str:
        done = subprocess.run(
            command, env=self._env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def vsctl(self, *arguments: str) -> str:
        """ovs-vsctl, which waits for ovs-vswitchd."""
        return self._run("ovs-vsctl", f"--timeout={TIMEOUT_S:.0f}", *arguments)

    def ofctl(self, *arguments: str) -> str:
        """ovs-ofctl, OpenFlow 1.5."""
        return self._run("ovs-ofctl", "-O", "OpenFlow15", *arguments)

    def add_bridge(self, name: str, dpid: int, controller: str = "") -> None:
        """As the agent makes it, without ports."""
        more = ["--", "set-controller", name, controller] if controller else []
        self.vsctl(
            *("add-br", name, "--", "set", "bridge", name, "datapath_type=netdev"),
            *("fail_mode=secure", "protocols=OpenFlow13,OpenFlow15"),
            *(f"other-config:datapath-id={dpid:016x}", *more),
        )

    def delete_bridge(self, name: str) -> None:
        """Away with it and all it holds."""
        self.vsctl("del-br", name)

    def management(self, name: str) -> Path:
        """Its unix OpenFlow socket."""
        return self.directory / f"{name}.mgmt"


def main_thread_us(pid: int) -> float:
    """CPU time of ovs-vswitchd's main thread, which serves the ports of ordinary Pods."""
    text = Path(f"/proc/{pid}/task/{pid}/stat").read_text()
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1e6 / os.sysconf("SC_CLK_TCK")


@contextmanager
def running(
    name: str = "", more: Mapping[str, str] | None = None, *, userspace_tso: bool = False
) -> Iterator[Ovs]:
    """
    An Open vSwitch, gone afterwards; `namespace` has a loopback and nothing else.

    Several at once need names; ovs-vswitchd's environment has `more`.

    Raises:
        Unavailable: it is not installed, or we are not root.
    """
    if os.geteuid() != 0:
        raise Unavailable("needs root: network namespaces")
    if shutil.which("ovs-vswitchd") is None or not SCHEMA.exists():
        raise Unavailable("no ovs-vswitchd (Debian: openvswitch-switch)")
    directory = Path(tempfile.mkdtemp(prefix="dunlin-bench-"))
    namespace = f"dunlin-bench-{os.getpid()}{name}"
    ovs = Ovs(directory, netns.create(namespace), more or {})
    try:
        netns.run_in(ovs.namespace, _loopback)
        ovs.start(userspace_tso=userspace_tso)
        yield ovs
    finally:
        ovs.stop()
        netns.delete(namespace)
        shutil.rmtree(directory)


def _loopback() -> None:
    with links.route() as ipr:
        links.up(ipr, "lo")
