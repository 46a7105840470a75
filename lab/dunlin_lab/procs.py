"""
The lab's processes: started to outlive whoever starts them, and never mistaken for others.

A process is known by its pid *and* its start time (proc(5), /proc/PID/stat field 22), and signalled
through a pidfd checked against both, so a recycled pid is never hit. Every process also carries the
lab's run directory in its environment, so one whose starter was killed before it could write the
record is found all the same.
"""

from __future__ import annotations

import os
import re
import select
import shutil
import signal
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from dunlin_lab import netns
from dunlin_lab.paths import LabPaths
from dunlin_lab.state import write_atomically

MARK_ENV = "DUNLIN_LAB_RUN_DIR"
"""In the environment of every process of a lab: its run directory."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.@-]{0,63}")


# Children of this very process that nobody else waits for.
_spawned: set[int] = set()


class ProcessError(Exception):
    """A process could not be started or ended; the message names it."""


class ProcessRecord(msgspec.Struct, frozen=True):
    """A process as it was started, with all that is needed to start it again."""

    name: str
    pid: int
    start_ticks: int
    argv: tuple[str, ...]
    env: dict[str, str]
    """What was added to the environment of whoever started it."""
    netns: str | None
    log: str
    program: str | None = None
    """Executable, where argv[0] is only the name that the process shall have."""


class Processes:
    """The processes of one lab, each under a name of its own such as `planner@1`."""

    def __init__(self, paths: LabPaths) -> None:
        self._paths = paths

    def start(
        self,
        name: str,
        argv: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        netns_path: Path | str | None = None,
        program: str | None = None,
    ) -> ProcessRecord:
        """
        Start a process in a session of its own; its output is appended to logs/NAME.log.

        Its temporary files are the lab's: what a killed process leaves (the package `kubernetes`
        writes a kubeconfig's key into one) ends with the lab.

        Args:
            netns_path: namespace it is born in; the host's when None.
            program: the executable where it is not argv[0], which then is only a name.
        Raises:
            ProcessError: one of that name is alive, or the command cannot be run.
        """
        if not _NAME.fullmatch(name):
            raise ProcessError(f"process name {name!r}: use a-z, 0-9, dot, dash and @")
        if (old := self.find(name)) is not None and is_alive(old):
            raise ProcessError(f"{name}: is running already, pid {old.pid}")
        executable = shutil.which(program or argv[0])
        if executable is None:
            raise ProcessError(f"{name}: command {program or argv[0]} not found")
        log = self._paths.logs / f"{name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self._paths.temporary.mkdir(mode=0o700, exist_ok=True)
        added = dict(env or {})
        pid = _spawn(
            executable,
            list(argv),
            {**os.environ, **added, **self._own()},
            log,
            netns_path,
        )
        place = None if netns_path is None else str(netns_path)
        record = ProcessRecord(
            name, pid, start_ticks(pid) or 0, tuple(argv), added, place, str(log), program
        )
        write_atomically(self._record(name), msgspec.json.encode(record))
        return record

    def restart(self, name: str) -> ProcessRecord:
        """
        Start a process that has ended, as it was started before.

        Raises:
            ProcessError: never started, or still alive.
        """
        old = self.find(name)
        if old is None:
            raise ProcessError(f"{name}: was never started in lab {self._paths.name}")
        return self.start(name, old.argv, env=old.env, netns_path=old.netns, program=old.program)

    def find(self, name: str) -> ProcessRecord | None:
        """The last process started under that name, alive or not."""
        try:
            content = self._record(name).read_bytes()
        except FileNotFoundError:
            return None
        return msgspec.json.decode(content, type=ProcessRecord)

    def all(self) -> tuple[ProcessRecord, ...]:
        """Every recorded process, alive or not, by name."""
        try:
            files = sorted(self._paths.processes.glob("*.json"))
        except FileNotFoundError:
            return ()
        return tuple(record for file in files if (record := self.find(file.stem)) is not None)

    def kill(self, name: str) -> bool:
        """SIGKILL; the record stays, so that `restart` can bring it back. False: was not alive."""
        record = self.find(name)
        return record is not None and end([(record.pid, record.start_ticks)], grace_s=0) > 0

    def stop(self, name: str, grace_s: float = 3.0) -> bool:
        """SIGTERM, SIGKILL after `grace_s`; the record goes. False: was not alive."""
        record = self.find(name)
        if record is None:
            return False
        ended = end([(record.pid, record.start_ticks)], grace_s)
        self._record(name).unlink(missing_ok=True)
        return ended > 0

    def living(self) -> frozenset[tuple[int, int]]:
        """(pid, start_ticks) of all that is this lab's, recorded or only marked."""
        recorded = {(r.pid, r.start_ticks) for r in self.all() if is_alive(r)}
        return frozenset(recorded | marked(self._paths.run_dir))

    def _own(self) -> dict[str, str]:
        """What the environment of every process says of the lab."""
        return {MARK_ENV: str(self._paths.run_dir), "TMPDIR": str(self._paths.temporary)}

    def _record(self, name: str) -> Path:
        return self._paths.processes / f"{name}.json"


def is_alive(record: ProcessRecord) -> bool:
    """True while the very process runs; a zombie or another process of that pid does not count."""
    return start_ticks(record.pid) == record.start_ticks


def start_ticks(pid: int) -> int | None:
    """Start time in clock ticks since boot; None when ended (a zombie has). Source: proc(5)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command name is in parentheses and may hold spaces and parentheses itself.
    fields = stat[stat.rindex(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def marked(run_dir: Path) -> set[tuple[int, int]]:
    """(pid, start_ticks) of processes with a lab's mark, but us and our ancestors."""
    needle = f"{MARK_ENV}={run_dir}".encode()
    found = set()
    for pid in _pids():
        try:
            environ = Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            # It ended while we looked, or is a kernel thread.
            continue
        if needle in environ.split(b"\0") and (ticks := start_ticks(pid)) is not None:
            found.add((pid, ticks))
    return found - _ourselves()


def inside(inodes: Iterable[tuple[int, int]]) -> set[tuple[int, int]]:
    """(pid, start_ticks) of processes in one of these namespaces (netns.inode())."""
    wanted = frozenset(inodes)
    found = set()
    for pid in _pids():
        try:
            where = netns.inode(f"/proc/{pid}/ns/net")
        except OSError:
            continue
        if where in wanted and (ticks := start_ticks(pid)) is not None:
            found.add((pid, ticks))
    return found - _ourselves()


def end(processes: Iterable[tuple[int, int]], grace_s: float) -> int:
    """
    End processes given as (pid, start_ticks): SIGTERM (unless grace_s is 0), then SIGKILL.

    Returns:
        How many were alive.
    Raises:
        ProcessError: one did not end within 10 seconds of SIGKILL.
    """
    with _pidfds(processes) as waiting:
        count = len(waiting)
        if grace_s > 0:
            _signal_all(waiting, signal.SIGTERM)
            _wait_all(waiting, grace_s)
        _signal_all(waiting, signal.SIGKILL)
        _wait_all(waiting, 10.0)
        if waiting:
            raise ProcessError(f"processes {sorted(waiting.values())} do not end after SIGKILL")
    return count


@contextmanager
def _pidfds(processes: Iterable[tuple[int, int]]) -> Iterator[dict[int, int]]:
    """Those that are alive, {pidfd: pid}; the start time is read once the pidfd holds the pid."""
    opened: dict[int, int] = {}
    try:
        for pid, ticks in processes:
            try:
                fd = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            opened[fd] = pid
            if start_ticks(pid) != ticks:
                os.close(fd)
                del opened[fd]
        yield opened
    finally:
        for fd in opened:
            os.close(fd)


def _signal_all(waiting: dict[int, int], number: signal.Signals) -> None:
    """Signal what is still there."""
    for fd in waiting:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(fd, number)


def _wait_all(waiting: dict[int, int], timeout_s: float) -> None:
    """Take out of `waiting` (closing the pidfds) what ends within the time."""
    deadline = time.monotonic() + timeout_s
    poll = select.poll()
    for fd in waiting:
        poll.register(fd, select.POLLIN)
    while waiting and (left := deadline - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1000):
            poll.unregister(fd)
            if waiting[fd] in _spawned:
                # A child of ours would stay a zombie; others' children are theirs to wait for.
                _spawned.discard(waiting[fd])
                with suppress(ChildProcessError):
                    os.waitpid(waiting[fd], 0)
            os.close(fd)
            del waiting[fd]


def _spawn(
    program: str,
    argv: list[str],
    env: dict[str, str],
    log: Path,
    netns_path: Path | str | None,
) -> int:
    """Fork and exec in a new session, in the namespace; the pid."""
    append = os.O_WRONLY | os.O_APPEND | os.O_CREAT

    def spawn() -> int:
        return os.posix_spawn(
            program,
            argv,
            env,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log), append, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
                *((os.POSIX_SPAWN_CLOSE, fd) for fd in _handed_down()),
            ],
            setsid=True,
            setsigmask=[],
            # Python ignores these, and the ignoring would be inherited.
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT],
        )

    try:
        pid = spawn() if netns_path is None else netns.run_in(netns_path, spawn)
    except OSError as error:
        raise ProcessError(f"{program}: {error}") from error
    _spawned.add(pid)
    return pid


def _handed_down() -> list[int]:
    """
    Descriptors above 2 that a child would inherit from whoever called us.

    A lab outlives its caller: it must not keep the caller's lock or pipe open.
    """
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        fd = int(entry.name)
        # The listing's own descriptor is gone by now.
        with suppress(OSError):
            if fd > 2 and os.get_inheritable(fd):
                found.append(fd)
    return found


def _pids() -> list[int]:
    """Every process now."""
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _ourselves() -> set[tuple[int, int]]:
    """Our process and its ancestors, which `down` must not end whatever they carry."""
    found = set()
    pid = os.getpid()
    while pid > 0 and (ticks := start_ticks(pid)) is not None:
        found.add((pid, ticks))
        stat = Path(f"/proc/{pid}/stat").read_bytes()
        pid = int(stat[stat.rindex(b")") + 2 :].split()[1])
    return found
