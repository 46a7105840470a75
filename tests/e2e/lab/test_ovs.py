"""OVS of each node: starts quickly, survives its starter, gives everything back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dunlin_lab import links, netns, procs
from dunlin_lab.down import down
from dunlin_lab.hugepages import Hugepages
from dunlin_lab.ovs import Datapath, NodeOvs, OvsError, choose_datapath, start_all
from dunlin_lab.paths import LabPaths
from dunlin_lab.underlay import AddressPlan, Underlay, host_networks
from tests.fixtures.hugepages import unborrowed

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root"),
    pytest.mark.skipif(shutil.which("ovs-vswitchd") is None, reason="needs openvswitch-switch"),
]


@pytest.fixture
def paths() -> Iterator[LabPaths]:
    """A lab of this test only, taken down after."""
    with tempfile.TemporaryDirectory(prefix="dl") as root:
        lab = LabPaths.named(f"ovs{os.getpid()}", Path(root) / "r")
        yield lab
        down(lab)


def build(paths: LabPaths, count: int, datapath: Datapath) -> list[NodeOvs]:
    """Nodes with their OVS not started."""
    plan = AddressPlan.of(paths.name, host_networks())
    _, nodes = Underlay(paths, plan, userspace_tso=datapath.userspace_tso).build(count)
    return [NodeOvs(paths, node.name, datapath) for node in nodes]


def dpdk_or_skip(paths: LabPaths, nodes: int) -> Datapath:
    """The DPDK datapath, else say why not."""
    try:
        return choose_datapath("dpdk", paths, nodes, userspace_tso=True)
    except OvsError as error:
        pytest.skip(str(error))


def add_bridge(node: NodeOvs, name: str) -> None:
    """A netdev bridge, by ovs-vsctl as a person would."""
    subprocess.run(
        [
            *("ovs-vsctl", "--timeout=10", "add-br", name, "--", "set", "bridge", name),
            *("datapath_type=netdev", "fail_mode=secure", "protocols=OpenFlow15"),
        ],
        env={**os.environ, **node.environment},
        check=True,
    )


@pytest.mark.parametrize("kind", ["netdev", "dpdk"])
def test_three_nodes_start_together_and_quickly(paths: LabPaths, kind: str) -> None:
    """All answer; a bridge takes a flow; the OVS tools find a node by its OVS_RUNDIR."""
    datapath = dpdk_or_skip(paths, 3) if kind == "dpdk" else choose_datapath("netdev", paths, 3)
    nodes = build(paths, 3, datapath)
    begin = time.monotonic()
    start_all(nodes)
    print(f"\n{kind}: 3 nodes in {time.monotonic() - begin:.2f} s")
    for node in nodes:
        add_bridge(node, "br0")
        node.ofctl("add-flow", "br0", "table=3,actions=drop")
        assert node.flows("br0") == ("table=3, actions=drop",)
        assert node.appctl("version").startswith("ovs-vswitchd (Open vSwitch) ")
    shown = subprocess.run(
        ["ovs-appctl", "dpif/show"],
        env={**os.environ, **nodes[0].environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "br0" in shown.stdout


def test_hugepages_are_given_back_as_found(paths: LabPaths) -> None:
    """Also when the lab is taken down without an orderly end, and beside another lab."""
    pool = Hugepages()
    found = unborrowed()
    nodes = build(paths, 1, dpdk_or_skip(paths, 1))
    start_all(nodes)
    assert pool.shares()[str(paths.run_dir)] == 32
    assert unborrowed() == found
    down(paths)
    assert unborrowed() == found
    assert str(paths.run_dir) not in pool.shares()
    assert str(paths.run_dir) not in Path("/proc/self/mounts").read_text()


def test_userspace_tso_is_set_before_the_first_start(paths: LabPaths) -> None:
    """It is read once at start, so it must be in the database by then."""
    (node,) = build(paths, 1, choose_datapath("netdev", paths, 1, userspace_tso=True))
    start_all([node])
    log = (node.rundir / "ovs-vswitchd.log").read_text()
    assert "Userspace TCP Segmentation Offloading support enabled" in log


def test_a_killed_vswitchd_stays_down_and_comes_back_with_its_bridges(paths: LabPaths) -> None:
    """The database outlives it; the node stays reachable over the management network."""
    (node,) = build(paths, 1, choose_datapath("netdev", paths, 1))
    start_all([node])
    add_bridge(node, "br0")
    assert node.kill_vswitchd()
    assert not node.kill_vswitchd()
    with pytest.raises(OvsError):
        node.appctl("version")
    (record,) = [r for r in procs.Processes(paths).all() if r.name == "ovsdb-server@n1"]
    assert procs.is_alive(record)
    mgmt = AddressPlan.of(paths.name).node_mgmt(1).ip
    ping = ["ping", "-n", "-c1", "-W2", str(mgmt)]
    assert subprocess.run(ping, capture_output=True, check=False).returncode == 0
    node.start_vswitchd()
    assert "br0" in node.appctl("dpif/show")
    node.restart_vswitchd()
    assert "br0" in node.appctl("dpif/show")


def test_ovs_outlives_whoever_started_it(paths: LabPaths) -> None:
    """`dunlin lab up` ends, the switches stay."""
    build(paths, 1, choose_datapath("netdev", paths, 1))
    code = (
        "import sys, pathlib; from dunlin_lab.paths import LabPaths;"
        "from dunlin_lab.ovs import NodeOvs, choose_datapath;"
        "p = LabPaths(sys.argv[1], pathlib.Path(sys.argv[2]));"
        "NodeOvs(p, 'n1', choose_datapath('netdev', p, 1)).start()"
    )
    subprocess.run([sys.executable, "-c", code, paths.name, str(paths.root)], check=True)
    node = NodeOvs(paths, "n1", choose_datapath("netdev", paths, 1))
    assert node.appctl("version")
    assert {record.name for record in procs.Processes(paths).all() if procs.is_alive(record)} == {
        "ovsdb-server@n1",
        "ovs-vswitchd@n1",
    }


def test_dpdk_that_cannot_be_had_is_said(paths: LabPaths, monkeypatch: pytest.MonkeyPatch) -> None:
    """`dpdk` is an error that says why, `auto` says why it is netdev."""
    monkeypatch.setattr("dunlin_lab.ovs._versions", lambda _: ("3.1.0", ""))
    with pytest.raises(OvsError, match=f"lab {paths.name}: --datapath dpdk: no ovs-vswitchd with"):
        choose_datapath("dpdk", paths, 1)
    chosen = choose_datapath("auto", paths, 1)
    assert chosen.kind == "netdev"
    assert "no ovs-vswitchd with DPDK" in chosen.reason


def test_a_vswitchd_that_ends_is_reported_with_its_log(paths: LabPaths) -> None:
    """Not a timeout: its end is noticed."""
    (node,) = build(paths, 1, Datapath("netdev", shutil.which("false") or "", "", ""))
    with pytest.raises(OvsError, match=r"node n1: ovs-vswitchd@n1 ended"):
        node.start()


def test_ten_labs_in_a_row_leave_nothing_behind(paths: LabPaths) -> None:
    """Namespaces, links, mounts, processes, hugepages and files are as before, each time."""
    found = unborrowed()
    times = []
    for _ in range(10):
        begin = time.monotonic()
        datapath = choose_datapath("auto", paths, 3, userspace_tso=True)
        start_all(build(paths, 3, datapath))
        middle = time.monotonic()
        down(paths)
        times.append((middle - begin, time.monotonic() - middle))
        assert not [name for name in netns.names() if paths.owns_netns(name)]
        assert not [name for name in links.names_here() if paths.owns_link(name)]
        assert str(paths.run_dir) not in Path("/proc/self/mounts").read_text()
        assert procs.marked(paths.run_dir) == set()
        assert str(paths.run_dir) not in Hugepages().shares()
        assert unborrowed() == found
        assert not paths.root.exists()
    up, gone = (max(column) for column in zip(*times, strict=True))
    print(f"\n{datapath.kind}: up {up:.2f} s, down {gone:.2f} s at most")
