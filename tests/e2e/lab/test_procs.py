"""Processes of a lab: outlive their starter, are never mistaken for others."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from dunlin_lab import procs
from dunlin_lab.paths import LabPaths
from dunlin_lab.state import write_atomically
from tests.e2e.lab_cluster import eventually

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def paths(tmp_path: Path) -> Iterator[LabPaths]:
    """A lab with processes only, all ended after."""
    lab = LabPaths("procs", tmp_path)
    yield lab
    procs.end(procs.Processes(lab).living(), grace_s=0)


def test_a_process_outlives_its_starter_and_is_found_again(paths: LabPaths) -> None:
    """Its own session, adopted by init, known by its record."""
    code = (
        "import sys, pathlib; from dunlin_lab import procs; from dunlin_lab.paths import LabPaths;"
        "procs.Processes(LabPaths('procs', pathlib.Path(sys.argv[1]))).start("
        "'a', [sys.executable, '-c', 'import time; time.sleep(600)'], env={'X': '1'})"
    )
    subprocess.run([sys.executable, "-c", code, str(paths.root)], check=True)
    record = procs.Processes(paths).find("a")
    assert record is not None
    assert procs.is_alive(record)
    assert os.getsid(record.pid) == record.pid
    assert b"X=1" in Path(f"/proc/{record.pid}/environ").read_bytes().split(b"\0")


def test_kill_keeps_the_record_and_restart_uses_it(paths: LabPaths) -> None:
    """`lab kill` then `lab start` gives the same command a new pid."""
    registry = procs.Processes(paths)
    first = registry.start("a", SLEEP)
    with pytest.raises(procs.ProcessError, match="running already"):
        registry.start("a", SLEEP)
    assert registry.kill("a")
    assert not procs.is_alive(first)
    assert not registry.kill("a")
    second = registry.restart("a")
    assert second.argv == first.argv
    assert procs.is_alive(second)
    assert registry.stop("a")
    assert registry.find("a") is None


def test_what_a_killed_process_leaves_is_the_labs(paths: LabPaths) -> None:
    """Its temporary files are below the run directory, which `down` removes; for us alone."""
    write = "import tempfile; print(tempfile.mkstemp()[1], flush=True); import time; time.sleep(99)"
    registry = procs.Processes(paths)
    record = registry.start("a", [sys.executable, "-c", write], env={"TMPDIR": "/nowhere"})
    log = Path(record.log)
    eventually("it has written", lambda: log.read_text().endswith("\n"))
    assert registry.kill("a")
    left = Path(log.read_text().strip())
    assert left.parent == paths.temporary
    assert left.is_file()
    assert paths.run_dir in left.parents
    assert paths.temporary.stat().st_mode & 0o777 == 0o700


def test_a_process_keeps_no_descriptor_of_its_caller(paths: LabPaths) -> None:
    """`flock FILE dunlin lab up` gives the lock back although the lab goes on."""
    inner, outer = os.pipe()
    os.set_inheritable(outer, True)
    record = procs.Processes(paths).start("a", SLEEP)
    os.close(outer)
    assert procs.is_alive(record)
    os.set_blocking(inner, False)
    assert os.read(inner, 1) == b""  # the end of the file: nobody else holds the other end
    os.close(inner)


def test_a_recycled_pid_is_neither_alive_nor_killed(paths: LabPaths) -> None:
    """The record of another start time is about a process that has ended."""
    registry = procs.Processes(paths)
    with subprocess.Popen(SLEEP) as stranger:
        record = procs.ProcessRecord("a", stranger.pid, 1, tuple(SLEEP), {}, None, "")
        write_atomically(paths.processes / "a.json", msgspec.json.encode(record))
        assert not procs.is_alive(record)
        assert not registry.kill("a")
        assert not registry.stop("a")
        assert stranger.poll() is None
        stranger.kill()


def test_a_process_without_record_is_found_by_its_mark(paths: LabPaths) -> None:
    """The starter may be killed between starting and writing."""
    registry = procs.Processes(paths)
    record = registry.start("a", SLEEP)
    (paths.processes / "a.json").unlink()
    assert registry.living() == {(record.pid, record.start_ticks)}


def test_a_process_that_ignores_sigterm_is_killed(paths: LabPaths) -> None:
    """The grace is bounded."""
    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "print('ready', flush=True); time.sleep(600)"
    )
    registry = procs.Processes(paths)
    record = registry.start("a", [sys.executable, "-c", code])
    wait_for_line(Path(record.log), "ready")
    assert registry.stop("a", grace_s=0.1)
    assert not procs.is_alive(record)


def test_a_command_that_is_not_there_is_named(paths: LabPaths) -> None:
    """The error says which process and which command."""
    with pytest.raises(procs.ProcessError, match=r"a: command /no/such"):
        procs.Processes(paths).start("a", ["/no/such"])


def wait_for_line(path: Path, text: str) -> None:
    """Until the log holds the text; pytest's time limit bounds it."""
    while text not in path.read_text():
        os.sched_yield()
