"""
Open vSwitch of each node: an ovsdb-server and an ovs-vswitchd in the node's namespace.

Everything of a node's OVS is in its OVS_RUNDIR under the names that the OVS tools look for, so
`OVS_RUNDIR=… ovs-vsctl`, `ovs-appctl` and `ovs-ofctl` work on it. Both processes run in the
foreground, outlive the lab's command, and are entered in procs as ovsdb-server@NODE and
ovs-vswitchd@NODE.

Source: ovs-vswitchd(8), ovs-vswitchd.conf.db(5), ovsdb-server(1); DATAPLANE §9 (--no-pci).
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dunlin_lab import hugepages, netns, preload, procs
from dunlin_lab.paths import LabPaths
from dunlin_lab.state import Journal

START_TIMEOUT_S = 20.0
HUGEPAGE_MIB_PER_NODE = 64
_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_DEBIAN_DPDK = "/usr/lib/openvswitch-switch-dpdk/ovs-vswitchd-dpdk"
_POLL_S = 0.005


class OvsError(Exception):
    """OVS cannot be started or asked; the message names the node and, if it died, its last log."""


@dataclass(frozen=True, slots=True)
class Datapath:
    """Which ovs-vswitchd all nodes run, and why this one."""

    kind: Literal["dpdk", "netdev"]
    binary: str
    version: str
    """Of Open vSwitch: "3.1.0"."""
    reason: str
    userspace_tso: bool = False


def choose_datapath(
    requested: Literal["auto", "dpdk", "netdev"],
    paths: LabPaths,
    nodes: int,
    *,
    userspace_tso: bool = False,
    pool: hugepages.Hugepages | None = None,
) -> Datapath:
    """
    Find the ovs-vswitchd to run, and for dpdk borrow the hugepages of `nodes` nodes.

    Raises:
        OvsError: no ovs-vswitchd at all; or dpdk was asked for and cannot be had.
    """
    if requested != "netdev":
        try:
            found = pool or hugepages.Hugepages()
            return _dpdk(paths, nodes, found, userspace_tso=userspace_tso)
        except (OvsError, hugepages.HugepageError) as error:
            if requested == "dpdk":
                raise OvsError(f"lab {paths.name}: --datapath dpdk: {error}") from error
            reason = f"auto: no dpdk because {error}"
    else:
        reason = "asked for"
    binary = shutil.which("ovs-vswitchd")
    if binary is None:
        raise OvsError(f"lab {paths.name}: no ovs-vswitchd on PATH (Debian: openvswitch-switch)")
    version, _ = _versions(binary)
    return Datapath("netdev", binary, version, reason, userspace_tso)


def _dpdk(
    paths: LabPaths, nodes: int, pool: hugepages.Hugepages, *, userspace_tso: bool
) -> Datapath:
    """The DPDK build, with its hugepages."""
    for candidate in (_DEBIAN_DPDK, "ovs-vswitchd-dpdk", "ovs-vswitchd"):
        binary = shutil.which(candidate)
        if binary is None:
            continue
        version, dpdk = _versions(binary)
        if dpdk:
            break
    else:
        raise OvsError("no ovs-vswitchd with DPDK (Debian: openvswitch-switch-dpdk)")
    page_kib = pool.page_kib
    if page_kib == 0:
        raise OvsError("this kernel has no hugepages")
    pages = nodes * -(-HUGEPAGE_MIB_PER_NODE * 1024 // page_kib)
    pool.borrow(str(paths.run_dir), pages)
    Journal(paths.journal).will_make("mount", str(paths.hugepages))
    hugepages.mount(paths.hugepages)
    reason = f"{binary} has DPDK {dpdk}; {pages} hugepages of {page_kib} KiB borrowed"
    return Datapath("dpdk", binary, version, reason, userspace_tso)


def _versions(binary: str) -> tuple[str, str]:
    """(Open vSwitch version, DPDK version or "")."""
    done = subprocess.run([binary, "--version"], capture_output=True, text=True, check=False)
    ovs = re.search(r"\(Open vSwitch\) ([0-9][0-9.]*)", done.stdout)
    if ovs is None:
        raise OvsError(f"{binary} --version: {done.stdout!r} {done.stderr!r}")
    dpdk = re.search(r"^DPDK ([0-9.]+)", done.stdout, re.MULTILINE)
    return ovs[1], dpdk[1] if dpdk else ""


class NodeOvs:
    """The OVS of one node."""

    def __init__(self, paths: LabPaths, node: str, datapath: Datapath) -> None:
        self.node = node
        self.rundir = paths.ovs(node)
        self._prefix = f"dunlin-{paths.digest}-{node}"
        self._datapath = datapath
        self._netns = netns.path_of(paths.node_netns(node))
        self._processes = procs.Processes(paths)
        self._server = f"ovsdb-server@{node}"
        self._vswitchd = f"ovs-vswitchd@{node}"

    @property
    def db_socket(self) -> Path:
        """OVSDB, at the place where ovs-vsctl looks."""
        return self.rundir / "db.sock"

    @property
    def environment(self) -> dict[str, str]:
        """What makes OVS programs and tools use this node's files."""
        names = ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR")
        # DPDK keeps its runtime files (telemetry socket) where systemd would say.
        extra = {"RUNTIME_DIRECTORY": str(self.rundir / "rt")}
        return {**dict.fromkeys(names, str(self.rundir)), **extra}

    def start(self) -> None:
        """
        Start what is not running, and return when ovs-vswitchd answers.

        Raises:
            OvsError: it did not within START_TIMEOUT_S.
        """
        (self.rundir / "rt").mkdir(parents=True, exist_ok=True)
        if not (self.rundir / "conf.db").exists():
            self._create_db()
        if not self._alive(self._server):
            self.db_socket.unlink(missing_ok=True)
            argv = ["ovsdb-server", str(self.rundir / "conf.db"), "--remote=punix:db.sock"]
            self._spawn(self._server, argv, "ovsdb-server")
        self._wait(self._server, lambda: listens(self.db_socket), "socket")
        self.start_vswitchd()

    def start_vswitchd(self) -> None:
        """
        Start ovs-vswitchd if it is not running, and return when it answers.

        Raises:
            OvsError: it did not within START_TIMEOUT_S.
        """
        if not self._alive(self._vswitchd):
            argv = ["ovs-vswitchd", f"unix:{self.db_socket}"]
            try:
                preloaded = preload.environment()
            except FileNotFoundError as error:
                raise OvsError(f"node {self.node}: {error}") from error
            self._spawn(self._vswitchd, argv, self._datapath.binary, preloaded)
        wanted = self._next_cfg()
        self._wait(self._vswitchd, lambda: self._column("cur_cfg") >= wanted, "configuration")
        self._wait(self._vswitchd, self._answers, "answer")
        if self._datapath.kind == "dpdk" and not self._column("dpdk_initialized"):
            raise OvsError(f"node {self.node}: ovs-vswitchd runs without DPDK: {self._log_tail()}")

    def stop(self) -> None:
        """End both, ovs-vswitchd first."""
        self._processes.stop(self._vswitchd)
        self._processes.stop(self._server)

    def kill_vswitchd(self) -> bool:
        """SIGKILL, it stays down until start_vswitchd; False: it was not running."""
        return self._processes.kill(self._vswitchd)

    def restart_vswitchd(self) -> None:
        """End it in an orderly way and start it again; the database stays as it is."""
        self._processes.stop(self._vswitchd)
        self.start_vswitchd()

    def appctl(self, command: str, *args: str) -> str:
        """
        What `ovs-appctl COMMAND ARGS…` prints, without a process.

        Raises:
            OvsError: not running, or the command is refused.
        """
        record = self._processes.find(self._vswitchd)
        pid = 0 if record is None else record.pid
        path = self.rundir / f"ovs-vswitchd.{pid}.ctl"
        return str(json_rpc(path, command, list(args)))

    def transact(self, *operations: dict[str, Any]) -> list[dict[str, Any]]:
        """
        Run OVSDB operations on database Open_vSwitch in one transaction. Source: RFC 7047 §5.2.

        Raises:
            OvsError: the server is down or an operation failed.
        """
        results = json_rpc(self.db_socket, "transact", ["Open_vSwitch", *operations])
        for result in results:
            if result is not None and "error" in result:
                raise OvsError(f"node {self.node}: OVSDB: {result}")
        return list(results)

    def ofctl(self, *args: str) -> str:
        """
        What ovs-ofctl prints; for tests and people only.

        Raises:
            OvsError: it failed.
        """
        done = subprocess.run(
            ["ovs-ofctl", "-O", "OpenFlow15", *args],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise OvsError(f"node {self.node}: ovs-ofctl {' '.join(args)}: {done.stderr.strip()}")
        return done.stdout

    def flows(self, bridge: str) -> tuple[str, ...]:
        """The bridge's flows as ovs-ofctl writes them, without counters, sorted."""
        lines = self.ofctl("--no-stats", "dump-flows", bridge).splitlines()
        return tuple(sorted(line.strip() for line in lines if "actions=" in line))

    def groups(self, bridge: str) -> tuple[str, ...]:
        """The bridge's groups as ovs-ofctl writes them, sorted."""
        lines = self.ofctl("dump-groups", bridge).splitlines()
        return tuple(sorted(line.strip() for line in lines if "group_id=" in line))

    def _create_db(self) -> None:
        """A database with its first configuration in, so that nothing has to be set after start."""
        config = {"userspace-tso-enable": str(self._datapath.userspace_tso).lower()}
        if self._datapath.kind == "dpdk":
            config |= {
                "dpdk-init": "true",
                "dpdk-socket-mem": str(HUGEPAGE_MIB_PER_NODE),
                "dpdk-extra": f"--no-pci --file-prefix={self._prefix}",
            }
        identity = {"system-id": self.node, "hostname": self.node}
        row = {"other_config": _ovsdb_map(config), "external_ids": _ovsdb_map(identity)}
        insert = {"op": "insert", "table": "Open_vSwitch", "row": row}
        new = self.rundir / "new.db"
        new.unlink(missing_ok=True)
        self._tool("create", str(new), str(_SCHEMA))
        self._tool("transact", str(new), json.dumps(["Open_vSwitch", insert]))
        new.rename(self.rundir / "conf.db")

    def _tool(self, *args: str) -> None:
        """Run ovsdb-tool; an error in a transaction is in its output, not in its exit code."""
        argv = ["ovsdb-tool", *args]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False)
        except FileNotFoundError as error:
            raise OvsError(f"node {self.node}: {error} (Debian: openvswitch-switch)") from error
        if done.returncode != 0 or '"error"' in done.stdout:
            raise OvsError(f"node {self.node}: {argv}: {done.stdout} {done.stderr}")

    def _spawn(
        self, name: str, argv: list[str], program: str, more: Mapping[str, str] | None = None
    ) -> None:
        """Run a daemon in the foreground; argv[0] names its pid, log and socket files."""
        log = self.rundir / f"{argv[0]}.log"
        rest = ["--no-chdir", "--pidfile", f"--log-file={log}", "-vconsole:off"]
        try:
            self._processes.start(
                name,
                [*argv, *rest],
                env={**self.environment, **(more or {})},
                netns_path=self._netns,
                program=program,
            )
        except procs.ProcessError as error:
            raise OvsError(f"node {self.node}: {error}") from error

    def _alive(self, name: str) -> bool:
        record = self._processes.find(name)
        return record is not None and procs.is_alive(record)

    def _wait(self, name: str, ready: Callable[[], bool], what: str) -> None:
        """Until `ready()`; a process that ended will not get there."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            if not self._alive(name):
                raise OvsError(f"node {self.node}: {name} ended: {self._log_tail()}")
            if time.monotonic() > deadline:
                raise OvsError(
                    f"node {self.node}: no {what} from {name} in {START_TIMEOUT_S:.0f} s: "
                    f"{self._log_tail()}"
                )
            time.sleep(_POLL_S)

    def _next_cfg(self) -> int:
        """Ask ovs-vswitchd to say in cur_cfg when it has taken over the database as it is now."""
        where = {"table": "Open_vSwitch", "where": []}
        mutate = {"op": "mutate", **where, "mutations": [["next_cfg", "+=", 1]]}
        select = {"op": "select", **where, "columns": ["next_cfg"]}
        return int(self.transact(mutate, select)[1]["rows"][0]["next_cfg"])

    def _column(self, name: str) -> Any:
        """One column of the only row of table Open_vSwitch."""
        select = {"op": "select", "table": "Open_vSwitch", "where": [], "columns": [name]}
        return self.transact(select)[0]["rows"][0][name]

    def _answers(self) -> bool:
        """True once appctl works."""
        try:
            self.appctl("version")
        except OvsError:
            return False
        return True

    def _log_tail(self) -> str:
        """The last lines of ovs-vswitchd's log, for error messages."""
        try:
            lines = (self.rundir / "ovs-vswitchd.log").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return "(no log)"
        return " / ".join(lines[-5:])


def start_all(nodes: Sequence[NodeOvs]) -> None:
    """
    Start the nodes' OVS at the same time.

    Raises:
        OvsError: the first that failed; the others may run.
    """
    with ThreadPoolExecutor(max(1, len(nodes))) as pool:
        for future in [pool.submit(node.start) for node in nodes]:
            future.result()


def listens(path: Path) -> bool:
    """True once somebody accepts there: a socket's file exists from bind(), before listen()."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
    return True


def json_rpc(path: Path, method: str, params: list[Any], timeout_s: float = 5.0) -> Any:
    """
    One JSON-RPC 1.0 call on a unix socket: OVSDB and unixctl both speak it, without framing.

    Raises:
        OvsError: nobody listens, no answer in time, or the answer is an error.
    """
    request = json.dumps({"method": method, "params": params, "id": 0}).encode()
    decoder, text = json.JSONDecoder(), ""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(timeout_s)
            sock.connect(str(path))
            sock.sendall(request)
            while True:
                chunk = sock.recv(1 << 16)
                if not chunk:
                    raise OvsError(f"{path}: closed before it answered {method}")
                text += chunk.decode(errors="replace")
                try:
                    reply, _ = decoder.raw_decode(text)
                except json.JSONDecodeError:
                    continue
                break
    except OSError as error:
        raise OvsError(f"{path}: {error}") from error
    if reply.get("error") is not None:
        raise OvsError(f"{path}: {method}: {reply['error']}")
    return reply["result"]


def _ovsdb_map(values: dict[str, str]) -> list[Any]:
    """A map as RFC 7047 §5.1 writes it."""
    return ["map", [[key, value] for key, value in values.items()]]
