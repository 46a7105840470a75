"""
Even spread as a real switch does it: its hash slots, and where real connections go.

OVS 3.1 skews equal weights up to 2:1 and corrupts the map when single buckets come and go: both
defects are shown here, beside what Dunlin does instead.
"""

import re
import struct
import time
from collections import Counter
from collections.abc import Iterator
from ipaddress import IPv4Address, ip_address
from typing import Literal

import pytest

from dunlin.events.facts import Endpoint, Protocol
from dunlin.openflow import codec
from dunlin.openflow.flow import Bucket, Group, Output, Program
from dunlin.openflow.messages import ErrorMessage
from dunlin.pipeline.layout import FLAT_BUCKETS_MAX, Table, Zone
from dunlin_lab.ovs import json_rpc
from tests.fixtures.ovs_dummy import DEADLINE_S, OpenFlowSocket, OvsBridge, OvsDummy
from tests.fixtures.spread import chance, is_even
from tests.packets.world import CLUSTER_IP, endpoints, pod_mac, program_of, service
from tests.unit.pipeline.test_spread import group_of, ovs_slots, shares

pytestmark = pytest.mark.ovs

COUNTS = (1, 3, 9, 10, 33, 100, 250, 1000)
GROUP_ID = 0x100
PACKETS_A_CALL = 32
"""What ovs-vswitchd takes from a port in one turn; a dummy port queues 100 and drops the rest."""
PER_ENDPOINT = 200
FIRST_PORT = 1024
ALL_SENT_S = 180.0
"""Until every connection is known; what was lost on the way is sent again."""

_START = re.compile(r"Constructing select group (\d+)")
_ASK = re.compile(
    r"move:NXM_NX_DP_HASH\[0\.\.(\d+)\]->NXM_NX_(REG\d+)\[.*set_field:(0x[0-9a-f]+)->",
    re.IGNORECASE,
)
_ENTRY = re.compile(r"orig=\(src=[\d.]+,dst=[\d.]+,sport=(\d+),[^)]*\),reply=\(src=([\d.]+),")
_HITS = re.compile(r"Bucket (\d+): weight=\d+, target=[\d.]+ hits=(\d+)")


@pytest.fixture
def switch(ovs_dummy: OvsDummy) -> Iterator[OvsBridge]:
    """A fresh bridge; ovs-vswitchd writes the slots of every group into its log."""
    ovs_dummy.appctl("vlog/set", "ofproto_dpif:file:dbg")
    try:
        with ovs_dummy.bridge() as bridge:
            yield bridge
    finally:
        ovs_dummy.appctl("vlog/set", "ofproto_dpif:file:info")


def real_slots(
    bridge: OvsBridge, *groups: Group, command: Literal["add", "modify"] = "add"
) -> dict[int, dict[int, int]]:
    """Group -> bucket -> hash slots, as ovs-vswitchd logs them when it is given these groups."""
    before = len(bridge.ovs.log)
    with bridge.session() as session:
        load(session, *(codec.encode_group(group, command) for group in groups))
    return logged(bridge, before, {group.group_id: len(group.buckets) for group in groups})


def logged(bridge: OvsBridge, before: int, wanted: dict[int, int]) -> dict[int, dict[int, int]]:
    """The log from `before` on, once it has all buckets of these groups: it is written aside."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = slots_in(bridge.ovs.log[before:])
        if {group_id: len(found.get(group_id, ())) for group_id in wanted} == wanted:
            return found
        assert time.monotonic() < deadline, found
        time.sleep(0.01)


def slots_in(log: str) -> dict[int, dict[int, int]]:
    """Of a part of the log; the last word on each group counts."""
    found: dict[int, dict[int, int]] = {}
    group: dict[int, int] = {}
    for line in log.splitlines():
        if start := _START.search(line):
            group = found[int(start[1])] = {}
        elif hits := _HITS.search(line):
            group[int(hits[1])] = int(hits[2])
    return found


def load(session: OpenFlowSocket, *messages: bytes) -> None:
    """All of them, without an error."""
    errors = [answer for answer in session.ask(*messages) if isinstance(answer, ErrorMessage)]
    assert not errors, errors


def version(bridge: OvsBridge) -> tuple[int, ...]:
    """Of this Open vSwitch: (3, 1, 0)."""
    return tuple(int(part) for part in bridge.ovs.version.split(".") if part.isdigit())


@pytest.mark.parametrize("count", [n for n in COUNTS if n <= FLAT_BUCKETS_MAX])
def test_each_endpoints_share_of_the_real_slots(switch: OvsBridge, count: int) -> None:
    """Nobody has more than 1.25 times the mean; and the model of the unit tests is right."""
    group = group_of(count)
    hits = real_slots(switch, group)[group.group_id]
    found = shares(group, hits)
    assert sorted(found) == list(range(1, count + 1))
    assert max(found.values()) <= 1.25 / count
    assert min(found.values()) >= 0.75 / count
    if version(switch) < (3, 5):
        assert ovs_slots(group) == hits


def test_equal_weights_skew_on_old_switches(switch: OvsBridge) -> None:
    """The defect: nine equal weights share sixteen slots 2:1; and so this test can fail."""
    equal = Group(1, "select", tuple(Bucket(i, (Output(i + 1),), 100) for i in range(9)))
    hits = real_slots(switch, equal)[1].values()
    assert (max(hits) == 2 * min(hits)) == (version(switch) < (3, 5)), hits


def test_buckets_that_come_singly_corrupt_old_switches(switch: OvsBridge) -> None:
    """The defect of insert_bucket, and that a MODIFY of the whole group has none of it."""
    real_slots(switch, group_of(2))
    before = len(switch.ovs.log)
    text = f"group_id={GROUP_ID},command_bucket_id=last,bucket=bucket_id=7,weight=100,actions=3"
    switch.ofctl("insert-buckets", text)
    if version(switch) < (3, 5):
        inserted = logged(switch, before, {GROUP_ID: 1})[GROUP_ID]
        assert list(inserted) == [7], "the others have no slot any more"
    whole = group_of(3)
    after = shares(whole, real_slots(switch, whole, command="modify")[GROUP_ID])
    assert max(after.values()) <= 1.25 / 3


def reached(bridge: OvsBridge, program: Program, connections: int) -> Counter[str]:
    """Endpoint -> how many of so many new UDP connections of one Pod conntrack sent there."""
    ports = {1: "gateway", 2: "uplink", 11: "p11", 12: "p12"}
    names = {ofport: f"{bridge.name}{name}" for ofport, name in ports.items()}
    for ofport, name in names.items():
        bridge.add_port(name, ofport)
    install(bridge, program)
    control = bridge.ovs.directory / "ovs-vswitchd.ctl"
    json_rpc(control, "dpctl/flush-conntrack", [])
    chosen: dict[int, str] = {}
    deadline = time.monotonic() + ALL_SENT_S
    while missing := [n for n in range(connections) if FIRST_PORT + n not in chosen]:
        # ovs-vswitchd drops a whole burst while it changes its upcall handlers: nobody's
        # connection is new by that, and its next packet has the same hash.
        assert time.monotonic() < deadline, f"{len(missing)} of {connections} are not known"
        for start in range(0, len(missing), PACKETS_A_CALL):
            frames = [datagram(n).hex() for n in missing[start : start + PACKETS_A_CALL]]
            json_rpc(control, "netdev-dummy/receive", [names[12], *frames])
        entries = str(json_rpc(control, "dpctl/dump-conntrack", [f"zone={int(Zone.MAIN)}"]))
        chosen |= {int(port): ip for port, ip in _ENTRY.findall(entries)}
    json_rpc(control, "dpctl/flush-conntrack", [])
    return Counter(chosen.values())


def install(bridge: OvsBridge, program: Program) -> None:
    """All groups, then all flows."""
    messages = [codec.encode_group(group, "add") for group in program.groups]
    messages += [codec.encode_flow(flow, "add") for flow in program.flows]
    with bridge.session() as session:
        load(session, *messages)


def datagram(number: int) -> bytes:
    """The first packet of connection `number` from Pod p12 to the Service."""
    source, target = IPv4Address("10.244.1.12"), IPv4Address(CLUSTER_IP)
    body = struct.pack("!HHHH", FIRST_PORT + number, 80, 8, 0)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 28, 0, 0, 64, 17, 0) + source.packed + target.packed
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    macs = bytes.fromhex("02000000ff01" + str(pod_mac(2)).replace(":", ""))
    return (macs + b"\x08\x00" + head + body).ljust(60, b"\0")


def a_service(count: int) -> Program:
    """default/web with so many endpoints beyond the node, 100 in an EndpointSlice."""
    everybody = [Endpoint(ip=ip_address("198.18.0.1") + i, node="n2") for i in range(count)]
    slices = (
        endpoints(*everybody[i : i + 100], protocol=Protocol.UDP, name=f"web-{i}")
        for i in range(0, count, 100)
    )
    return program_of(service(protocol=Protocol.UDP), *slices)


@pytest.mark.parametrize("count", [n for n in COUNTS if n <= 100])
def test_real_connections_pass_a_chi_squared_test(ovs_dummy: OvsDummy, count: int) -> None:
    """200 connections an endpoint, from one client: equal shares are not refuted."""
    with ovs_dummy.bridge() as bridge:
        counts = reached(bridge, a_service(count), PER_ENDPOINT * count)
    assert sum(counts.values()) == PER_ENDPOINT * count
    assert is_even(counts, count), (chance(counts, count), counts)


@pytest.mark.timeout(240)
def test_more_than_a_thousand_endpoints_are_all_reached(ovs_dummy: OvsDummy) -> None:
    """1,200 endpoints in twelve EndpointSlices: no cap, nobody without connections."""
    with ovs_dummy.bridge() as bridge:
        counts = reached(bridge, a_service(1200), 20_000)
    assert len(counts) == 1200
    assert is_even(counts, 1200), chance(counts, 1200)


def test_the_chi_squared_test_finds_the_old_skew(ovs_dummy: OvsDummy) -> None:
    """Nine endpoints on sixteen slots, as equal weights give them: real connections are refuted."""
    program = a_service(9)
    (group,) = (g for g in program.groups if len(g.buckets) == 10)
    weights = [2] * 7 + [1] * 2
    buckets = zip(group.buckets[:9], weights, strict=True)
    skewed = tuple(Bucket(b.bucket_id, b.actions, weight) for b, weight in buckets)
    old = Group(group.group_id, "select", skewed, selection_method="dp_hash")
    groups = tuple(old if g is group else g for g in program.groups)
    with ovs_dummy.bridge() as bridge:
        counts = reached(bridge, Program(program.flows, groups), PER_ENDPOINT * 9)
    assert len(counts) == 9
    assert not is_even(counts, 9), (chance(counts, 9), counts)


@pytest.mark.parametrize("count", [n for n in COUNTS if n > FLAT_BUCKETS_MAX])
def test_each_endpoints_share_of_the_real_flows(ovs_dummy: OvsDummy, count: int) -> None:
    """
    Read back from the switch: which values of dp_hash are whose, each value looked up.

    Nobody has more than 1.25 times the mean.
    """
    with ovs_dummy.bridge() as bridge:
        install(bridge, a_service(count))
        found = installed_shares(bridge)
    assert len(found) == count
    assert sum(found.values()) == pytest.approx(1.0)
    assert max(found.values()) <= 1.25 / count
    assert min(found.values()) >= 0.75 / count


def installed_shares(bridge: OvsBridge) -> dict[str, float]:
    """Endpoint -> its part of all values of dp_hash, by groups and flows that a switch dumps."""
    groups = bridge.ofctl("dump-groups")
    asked = _ASK.search(groups)
    assert asked is not None, groups
    bits, register, number = int(asked[1]) + 1, asked[2].lower(), int(asked[3], 0)
    entries: dict[int, dict[int, str]] = {}
    for flow in bridge.ofctl("dump-flows", f"table={int(Table.ENDPOINT_SLOT)}").splitlines():
        slot = re.search(rf"reg\d+={number:#x},{register}=(0x[0-9a-f]+|0)(?:/(0x[0-9a-f]+))?", flow)
        target = re.search(r"nat\(dst=([\d.]+):", flow)
        if slot and target:
            mask = int(slot[2], 16) if slot[2] else 0xFFFFFFFF
            assert int(slot[1], 16) not in entries.setdefault(mask, {}), flow
            entries[mask][int(slot[1], 16)] = target[1]
    found: Counter[str] = Counter()
    for value in range(1 << bits):
        owners = [by[value & mask] for mask, by in entries.items() if value & mask in by]
        assert len(owners) == 1, (value, owners)
        found[owners[0]] += 1
    return {ip: hits / (1 << bits) for ip, hits in found.items()}
