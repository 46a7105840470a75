"""A node for tests: a network namespace with an Open vSwitch of its own, and Pods beside it."""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
DEADLINE_SECONDS = 20.0


def run(*command: str, netns: str | None = None, check: bool = True) -> str:
    """Standard output of a command, inside a named namespace where one is given."""
    words = ("ip", "netns", "exec", netns, *command) if netns else command
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"{' '.join(words)}: {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def wait_for(level: Callable[[], bool], what: str) -> None:
    """Look at a level until it holds; fail after DEADLINE_SECONDS."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not level():
        assert time.monotonic() < deadline, f"waited {DEADLINE_SECONDS} s for {what}"
        time.sleep(0.02)


class OvsNode:
    """Namespaces `name` (the node) and `name`-<pod>; OVS 3.1 without DPDK; all gone at the end."""

    def __init__(
        self, name: str, *, userspace_tso: bool = False, more: Mapping[str, str] | None = None
    ) -> None:
        """Nothing is started before `with`; ovs-vswitchd's environment has `more`."""
        self._more = dict(more or {})
        self.name = name
        self.rundir = Path(tempfile.mkdtemp(prefix=f"{name}-"))
        self._tso = userspace_tso
        self._namespaces: list[str] = []
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def remote(self) -> str:
        """For OvsdbSession."""
        return f"unix:{self.rundir}/db.sock"

    @property
    def netns(self) -> Path:
        """The node's namespace."""
        return Path("/run/netns", self.name)

    def __enter__(self) -> Self:
        """Start everything."""
        self.add_netns(self.name)
        run("ip", "link", "set", "lo", "up", netns=self.name)
        run("ovsdb-tool", "create", f"{self.rundir}/conf.db", SCHEMA)
        self.start_ovsdb()
        self.vsctl("--no-wait", "init")
        if self._tso:
            self.vsctl("--no-wait", "set", "o", ".", "other_config:userspace-tso-enable=true")
        self.start_vswitchd()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the processes that were started here, and remove namespaces and files."""
        if error is not None:
            print((self.rundir / "ovs-vswitchd.log").read_text()[-6000:])
        for program in tuple(self._processes):
            self.kill(program)
        for namespace in self._namespaces:
            run("ip", "netns", "del", namespace, check=False)
        shutil.rmtree(self.rundir)

    def add_netns(self, name: str) -> Path:
        """A namespace that goes with the node."""
        run("ip", "netns", "add", name)
        self._namespaces.append(name)
        return Path("/run/netns", name)

    def add_pod(self, pod: str) -> Path:
        """A namespace `<node>-<pod>`, with nothing in it."""
        return self.add_netns(f"{self.name}-{pod}")

    def start_ovsdb(self) -> None:
        """Start ovsdb-server and wait for its socket."""
        self._spawn(
            "ovsdb-server", f"{self.rundir}/conf.db", f"--remote=punix:{self.rundir}/db.sock"
        )
        wait_for((self.rundir / "db.sock").exists, "ovsdb-server's socket")

    def start_vswitchd(self) -> None:
        """Start ovs-vswitchd in the node's namespace and wait until it answers."""
        self._spawn("ovs-vswitchd", self.remote, **self._more)
        pidfile = self.rundir / "ovs-vswitchd.pid"
        pid = str(self._processes["ovs-vswitchd"].pid)
        wait_for(
            lambda: pidfile.exists() and pidfile.read_text().strip() == pid, "ovs-vswitchd's pid"
        )

    def kill(self, program: str) -> None:
        """SIGKILL one of the two, and reap it."""
        process = self._processes.pop(program)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def vsctl(self, *arguments: str) -> str:
        """ovs-vsctl on this node's database."""
        return run("ovs-vsctl", f"--db={self.remote}", *arguments)

    def ofctl(self, command: str, bridge: str, *arguments: str) -> str:
        """ovs-ofctl on a bridge of this node, OpenFlow 1.5."""
        target = f"unix:{self.rundir}/{bridge}.mgmt"
        return run("ovs-ofctl", "-O", "OpenFlow15", command, target, *arguments)

    def log(self) -> str:
        """What ovs-vswitchd has written."""
        return (self.rundir / "ovs-vswitchd.log").read_text()

    def _spawn(self, program: str, *arguments: str, **more: str) -> None:
        """In the node's namespace, in the foreground, as a child of this process itself."""
        environment = os.environ | {"OVS_RUNDIR": str(self.rundir), "OVS_LOGDIR": str(self.rundir)}
        environment |= more
        options = ("--pidfile", "--log-file", "-vconsole:off", "-vsyslog:off")
        command = ("ip", "netns", "exec", self.name, program, *arguments, *options)
        self._processes[program] = subprocess.Popen(command, env=environment)
