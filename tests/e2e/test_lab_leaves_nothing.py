"""Ten labs up and down, and one killed half-way: nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from dunlin_lab.down import down
from dunlin_lab.hugepages import Hugepages
from dunlin_lab.paths import LabPaths
from tests.e2e.lab_cluster import DUNLIN, LabCluster, eventually, why_not
from tests.fixtures.hugepages import unborrowed

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]
TIMES = 10


def remains(name: str) -> dict[str, object]:
    """Whatever of a lab of that name can be seen on this machine."""
    root = Path(os.environ.get("DUNLIN_LAB_ROOT", "/run/dunlin-lab"))
    run = root / name
    netns = Path("/run/netns")
    places = [p.name for p in netns.iterdir()] if netns.is_dir() else []
    links = [p.name for p in Path("/sys/class/net").glob("dl*")]
    mark = f"DUNLIN_LAB_RUN_DIR={run}".encode()
    mounts = [
        line for line in Path("/proc/self/mounts").read_text().splitlines() if str(run) in line
    ]
    digest = LabPaths.named(name).digest
    return {
        "files": [str(run)] if run.exists() else [],
        "namespaces": [place for place in places if place.startswith(f"dl-{name}-")],
        "links": [link for link in links if digest in link],
        "processes": [pid for pid in _pids() if mark in _environ(pid)],
        "mounts": mounts,
    }


def _pids() -> list[str]:
    return [p.name for p in Path("/proc").iterdir() if p.name.isdigit()]


def _environ(pid: str) -> bytes:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return b""


@pytest.fixture(autouse=True)
def _can_run() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)


def test_remains_are_seen() -> None:
    """The oracle can fail: a running lab leaves processes, namespaces, links and files."""
    lab = LabCluster(f"seen-{os.getpid()}")
    try:
        lab.up("--nodes", "1")
        found = remains(lab.name)
        assert all(found[kind] for kind in ("files", "namespaces", "links", "processes")), found
    finally:
        lab.down()


@pytest.mark.timeout(600)
def test_ten_times() -> None:
    """Up and down ten times in a row leaves no namespace, link, process, mount, page or file."""
    name = f"ten-{os.getpid()}"
    run = LabPaths.named(name).run_dir
    pages = unborrowed()
    for _ in range(TIMES):
        lab = LabCluster(name)
        try:
            lab.up("--nodes", "2")
        finally:
            lab.down()
        found = remains(name)
        assert not any(found.values()), found
        assert str(run) not in Hugepages().shares()
        assert unborrowed() == pages


@pytest.mark.timeout(180)
@pytest.mark.parametrize("level", ["journal.jsonl", "ovs/n1/conf.db", "log/flowctl@0.log"])
def test_up_killed_half_way(level: str) -> None:
    """`lab up` killed with SIGKILL once it got so far: `down` still removes everything."""
    paths = LabPaths.named(f"half-{os.getpid()}")
    command = [*DUNLIN, "lab", "up", "--no-sample", "--name", paths.name]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(f"{level} is there", (paths.run_dir / level).exists)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        down(paths)
    found = remains(paths.name)
    assert not any(found.values()), found
