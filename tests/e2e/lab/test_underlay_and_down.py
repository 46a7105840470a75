"""The underlay works, and `down` leaves nothing behind, also after kill -9 at any moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from dunlin_lab import links, netns, procs
from dunlin_lab.down import ForeignLabError, down
from dunlin_lab.paths import LabPaths
from dunlin_lab.state import Journal
from dunlin_lab.underlay import UPLINK, AddressPlan, Underlay, UnderlayError, host_networks

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@pytest.fixture
def paths() -> Iterator[LabPaths]:
    """A lab of this test only, taken down after."""
    with tempfile.TemporaryDirectory(prefix="dl") as root:
        lab = LabPaths.named(f"ut{os.getpid()}", Path(root) / "r")
        yield lab
        down(lab)


def build(paths: LabPaths, nodes: int, *, tso: bool = False) -> Underlay:
    """An underlay of so many nodes."""
    plan = AddressPlan.of(paths.name, host_networks())
    underlay = Underlay(paths, plan, userspace_tso=tso)
    underlay.build(nodes)
    return underlay


def ping(path: Path, address: str) -> bool:
    """One echo from the namespace."""
    argv = ["ping", "-n", "-c1", "-W2", address]
    done = netns.run_in(path, lambda: subprocess.run(argv, capture_output=True, check=False))
    return done.returncode == 0


def left_behind(paths: LabPaths) -> list[str]:
    """Everything of the lab that can be seen on the machine."""
    found = [name for name in netns.names() if paths.owns_netns(name)]
    found += [name for name in links.names_here() if paths.owns_link(name)]
    found += [str(pid) for pid, _ in procs.marked(paths.run_dir)]
    found += [str(p) for p in (paths.run_dir, paths.lock, paths.root) if p.exists()]
    mounts = Path("/proc/self/mounts").read_text()
    return found + [line for line in mounts.splitlines() if str(paths.run_dir) in line]


def test_nodes_reach_each_other_the_outside_and_the_host(paths: LabPaths) -> None:
    """IPv4 and IPv6 between nodes and to the gateway; the host over the management network."""
    plan = AddressPlan.of(paths.name, host_networks())
    outside, (n1, n2) = Underlay(paths, plan, userspace_tso=False).build(2)
    for address in (*n2.ips, *outside.ips, str(plan.host.ip)):
        assert ping(Path(n1.netns), address), address
    assert ping(Path("/proc/self/ns/net"), n1.mgmt_ip)
    assert plan.mgmt in host_networks()


@pytest.mark.parametrize("tso", [False, True])
def test_checksum_offload_follows_userspace_tso(paths: LabPaths, tso: bool) -> None:
    """Without userspace-tso no end of an uplink leaves a checksum undone; with it they may."""
    build(paths, 1, tso=tso)
    for place in (paths.node_netns("n1"), paths.outside_netns):
        on = netns.run_in(netns.path_of(place), lambda: links.tx_checksum(UPLINK))
        assert on is tso, place
    fabric = netns.path_of(paths.fabric_netns)
    assert netns.run_in(fabric, lambda: links.tx_checksum("n1")) is tso


def test_two_labs_live_side_by_side(paths: LabPaths) -> None:
    """Their management networks differ, and taking one down leaves the other alone."""
    other = LabPaths.named(f"{paths.name}b", paths.root)
    try:
        build(paths, 1)
        build(other, 1)
        down(paths)
        assert {n for n in netns.names() if other.owns_netns(n)} == {
            other.node_netns("n1"),
            other.fabric_netns,
            other.outside_netns,
        }
        assert other.mgmt_bridge in links.names_here()
    finally:
        down(other)


def test_a_taken_management_subnet_is_avoided() -> None:
    """Only this subnet is visible on the host, so it must be free there."""
    first = AddressPlan.of("x").mgmt
    assert not AddressPlan.of("x", frozenset({first})).mgmt.overlaps(first)
    with pytest.raises(UnderlayError, match="lab x: no free"):
        AddressPlan.of("x", frozenset({IPv4Network("198.18.0.0/15")}))


def test_down_removes_all_and_again_is_no_error(paths: LabPaths) -> None:
    """Namespaces, links, processes in and out of namespaces, and files."""
    build(paths, 2)
    registry = procs.Processes(paths)
    registry.start("a", SLEEP)
    registry.start("b", SLEEP, netns_path=netns.path_of(paths.node_netns("n1")))
    removed = down(paths)
    assert (removed.processes, removed.namespaces, removed.links) == (2, 4, 3)
    assert left_behind(paths) == []
    assert down(paths).processes == 0
    assert left_behind(paths) == []


def test_down_ends_what_a_user_left_in_a_namespace(paths: LabPaths) -> None:
    """A shell of `lab exec` would keep the Pod's namespace alive."""
    build(paths, 1)
    path = netns.path_of(paths.node_netns("n1"))
    process = netns.run_in(path, lambda: subprocess.Popen(SLEEP))
    down(paths)
    assert process.wait(5) != 0


def test_down_works_without_journal_and_without_names(paths: LabPaths) -> None:
    """Either the names or the journal is enough to find a thing."""
    build(paths, 1)
    paths.journal.unlink()
    odd = f"{paths.name}-odd"
    netns.create(odd)
    Journal(paths.journal).will_make("netns", odd)
    down(paths)
    assert left_behind(paths) == []
    assert odd not in netns.names()


def test_another_roots_lab_of_the_same_name_is_not_touched(paths: LabPaths) -> None:
    """Two roots can hold one name; the names on the machine belong to the first."""
    build(paths, 1)
    other = LabPaths.named(paths.name, paths.root.parent / "other")
    with pytest.raises(ForeignLabError, match=str(paths.run_dir)):
        down(other)
    assert netns.exists(paths.node_netns("n1"))


BUILDER = """
import sys, pathlib
from dunlin_lab import procs
from dunlin_lab.paths import LabPaths
from dunlin_lab.underlay import AddressPlan, Underlay, host_networks
paths = LabPaths.named(sys.argv[1], pathlib.Path(sys.argv[2]))
print("go", flush=True)
under = Underlay(paths, AddressPlan.of(paths.name, host_networks()), userspace_tso=False)
under.build(3)
registry = procs.Processes(paths)
for i in range(10):
    registry.start(f"p{i}", [sys.executable, "-c", "import time; time.sleep(600)"])
print("done", flush=True)
"""


@pytest.mark.parametrize("after_ms", [0, 5, 15, 30, 50, 80, 120, 200])
def test_down_after_kill_9_of_up_at_any_moment(paths: LabPaths, after_ms: int) -> None:
    """Whatever `up` had made when it died, nothing is left."""
    argv = [sys.executable, "-c", BUILDER, paths.name, str(paths.root)]
    builder = subprocess.Popen(argv, stdout=subprocess.PIPE)
    assert builder.stdout is not None
    assert builder.stdout.readline() == b"go\n"
    time.sleep(after_ms / 1000)  # the moment of death, not synchronisation
    builder.send_signal(signal.SIGKILL)
    builder.wait(10)
    builder.stdout.close()
    down(paths)
    assert left_behind(paths) == []
