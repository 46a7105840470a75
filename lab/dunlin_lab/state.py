"""
What a lab has made (the journal) and what it is (LabState), on disk, readable at any time.

The journal is written *before* a thing is made, so after kill -9 at any moment it names everything
that may exist. It never says that a thing is gone: removing is idempotent, and the file goes last.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from dunlin_lab.paths import LabPaths

ResourceKind = Literal["netns", "link", "mount"]
"""A namespace by name, a link in the host's namespace by name, a mount by path."""


class LabBusyError(Exception):
    """Somebody else is changing this lab."""


class NoLabError(Exception):
    """There is no lab of that name."""


class Resource(msgspec.Struct, frozen=True, order=True):
    """One thing outside the run directory that `down` must remove."""

    kind: ResourceKind
    name: str


class NodeState(msgspec.Struct, frozen=True):
    """One node. Addresses are plain text; `ips` are IPv4 first."""

    name: str
    index: int
    netns: str
    ips: tuple[str, ...]
    mgmt_ip: str
    ovs_rundir: str
    dpid: str = ""
    """16 hex digits; "" until the agent has made the bridge."""


class OutsideState(msgspec.Struct, frozen=True):
    """The world beyond the cluster; its addresses are the nodes' default gateways."""

    netns: str
    ips: tuple[str, ...]


class LabState(msgspec.Struct, frozen=True):
    """The lab as `up` made it. Processes are in procs, Pods in the sandboxes' records."""

    name: str
    mgmt_ip: str
    """The host's address that every node reaches, OVS or no OVS."""
    outside: OutsideState
    nodes: tuple[NodeState, ...] = ()
    datapath: Literal["dpdk", "netdev", ""] = ""
    datapath_reason: str = ""
    userspace_tso: bool = False
    kubeconfig: str = ""
    nats: str = ""
    extra: dict[str, str] = msgspec.field(default_factory=dict)
    """Whatever the command line wants to find again, such as URLs."""


class Journal:
    """Append-only list of what a lab has made outside its run directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def will_make(self, kind: ResourceKind, name: str) -> None:
        """Write down a thing; call it before the thing is made. Repeating is harmless."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        line = msgspec.json.encode(Resource(kind, name)) + b"\n"
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)

    def read(self) -> tuple[Resource, ...]:
        """Everything written, in order, once each; a torn last line was not made."""
        try:
            lines = self._path.read_bytes().splitlines()
        except FileNotFoundError:
            return ()
        found: dict[Resource, None] = {}
        for number, line in enumerate(lines, 1):
            try:
                found[msgspec.json.decode(line, type=Resource)] = None
            except msgspec.DecodeError:
                if number != len(lines):
                    raise
        return tuple(found)


def save_state(paths: LabPaths, state: LabState) -> None:
    """Replace the lab's state as one step."""
    write_atomically(paths.state, msgspec.json.format(msgspec.json.encode(state)))


def load_state(paths: LabPaths) -> LabState:
    """
    Read the lab's state.

    Raises:
        NoLabError: `up` never got that far, or `down` has removed it.
    """
    try:
        return msgspec.json.decode(paths.state.read_bytes(), type=LabState)
    except FileNotFoundError:
        raise NoLabError(f"there is no lab {paths.name!r} ({paths.state} is absent)") from None


def write_atomically(path: Path, content: bytes) -> None:
    """
    A reader sees the old content or the new, and a killed writer leaves the old.

    Its owner alone can read it, at any moment: that is how `mkstemp` makes files.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def locked(paths: LabPaths, timeout_s: float = 60.0) -> Iterator[None]:
    """
    Be the only one who changes this lab. The kernel lets go when the holder dies.

    Raises:
        LabBusyError: another holder did not finish in time.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        paths.lock.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(paths.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if _try_lock(fd) and _same_file(fd, paths.lock):
            break
        os.close(fd)
        if time.monotonic() > deadline:
            raise LabBusyError(f"lab {paths.name}: another command holds {paths.lock}")
        # flock(2) has no time limit, and a lock handed over by `down` is on a removed file.
        time.sleep(0.05)
    try:
        yield
    finally:
        os.close(fd)


def _try_lock(fd: int) -> bool:
    """False when somebody else holds it."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _same_file(fd: int, path: Path) -> bool:
    """False when `down` removed the lock file between our open and our lock."""
    try:
        named = path.stat()
    except FileNotFoundError:
        return False
    held = os.fstat(fd)
    return (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino)
