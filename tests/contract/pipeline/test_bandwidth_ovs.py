"""
Bandwidth limits on real Open vSwitch, its clock stopped: exactly what a bucket lets through.

Packets go through the flows of a whole node, so what is measured is a Pod's traffic, not a meter.
"""

import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from ipaddress import ip_address
from pathlib import Path

import msgspec
import pytest

from dunlin.events.intents import AnyIntent, EndpointIntent, PolicySubjectIntent
from dunlin.openflow import codec
from dunlin.openflow.flow import Program
from dunlin.openflow.messages import ErrorMessage
from dunlin.openflow.packet import packet
from dunlin.pipeline import compile_intent, switch_context
from dunlin.pipeline.bandwidth import BURST_MIN_KBIT
from tests.fixtures import cluster
from tests.fixtures.frames import frame
from tests.fixtures.ovs_dummy import DEADLINE_S, ControlSocket, OvsBridge, OvsDummy, missing_ovs

pytestmark = pytest.mark.ovs

AT_ONCE = 50
"""Packets at a port before they are waited for: a dummy port keeps 100 and loses the rest."""
SIZE = 1250
"""Octets of a frame: 10 kbit."""
KBIT = SIZE * 8 // 1000
BURST = BURST_MIN_KBIT // KBIT
"""Packets."""


class Node:
    """Node n1 with its two Pods on a switch whose clock stands still."""

    def __init__(self, ovs: OvsDummy, bridge: OvsBridge) -> None:
        self._ovs = ovs
        self._bridge = bridge
        self._control = ControlSocket(ovs)
        for port in (cluster.GATEWAY_PORT, cluster.UPLINK_PORT, 11, 12):
            bridge.add_port(f"{bridge.name}-{port}", port)
        self._there: set[int] = set()

    def close(self) -> None:
        """The clock goes on with the next warp; nothing of this switch is used any more."""
        self._control.close()

    def load(self, first: EndpointIntent) -> None:
        """All flows of the node; `first`: its first Pod."""
        switch, other = cluster.switch(1), cluster.pod(1, 2)
        subjects = [
            PolicySubjectIntent(scope="n1", key=f"default/{p.pod_name}", ips=p.ips)
            for p in (first, other)
        ]
        everything: list[AnyIntent] = [switch, first, other, cluster.route(2), *subjects]
        context = switch_context(switch)
        program = Program()
        for intent in everything:
            program += compile_intent(intent, context)
        with self._bridge.session() as session:
            for meter in program.meters:
                command = "modify" if meter.meter_id in self._there else "add"
                assert not session.ask(codec.encode_meter_mod(command, meter, 1))  # type: ignore[arg-type]
                self._there.add(meter.meter_id)
            flows = [codec.encode_flow(flow, "add") for flow in program.flows]
            errors = [a for a in session.ask(*flows) if isinstance(a, ErrorMessage)]
            assert not errors, errors
        self._control.ask("revalidator/purge")

    def passed(self, source: int, target: int, count: int, *, version: int = 4) -> int:
        """So many packets from one Pod to the other, or to node n2's first Pod (port 0)."""
        out = target or cluster.UPLINK_PORT
        before, received = self._count("tx", out), self._count("rx", source)
        sent = f"{self._bridge.name}-{source}"
        data = self._frame(source, target, version)
        for start in range(0, count, AT_ONCE):
            now = min(count, start + AT_ONCE)
            for _ in range(now - start):
                self._control.ask("netdev-dummy/receive", sent, data.hex())
            deadline = time.monotonic() + DEADLINE_S
            while self._count("rx", source) - received < now:
                assert time.monotonic() < deadline, "the switch has not taken them all"
        return self._count("tx", out) - before

    def wait(self, milliseconds: int) -> None:
        """The switch's time passes."""
        self._control.ask("time/warp", str(milliseconds), "10")

    def _frame(self, source: int, target: int, version: int) -> bytes:
        me = cluster.pod(1, source - 10)
        there = cluster.pod(1, target - 10) if target else cluster.pod(2, 1)
        ip, dst = (p.ips[0 if version == 4 else 1] for p in (me, there))
        names = ("nw_src", "nw_dst") if version == 4 else ("ipv6_src", "ipv6_dst")
        fields = packet(
            eth_src=me.mac, eth_dst="0e:00:64:75:6e:01",
            eth_type=0x800 if version == 4 else 0x86DD, nw_proto=17, nw_ttl=64,
            udp_src=4000, udp_dst=5000,
            **{names[0]: ip_address(str(ip)), names[1]: ip_address(str(dst))},
        )  # fmt: skip
        made = frame(fields)
        return made.ljust(SIZE, b"\0") if len(made) < SIZE else made

    def _count(self, way: str, port: int) -> int:
        (found,) = re.findall(rf"{way} pkts=(\d+)", self._bridge.ofctl("dump-ports", str(port)))
        return int(found)


@pytest.fixture(scope="module")
def stopped() -> Iterator[OvsDummy]:
    """An Open vSwitch of this module's own: its clock stands still."""
    reason = missing_ovs()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="ovs-meters-", dir="/tmp") as directory:
        ovs = OvsDummy(Path(directory))
        try:
            ovs.start()
            yield ovs
        finally:
            ovs.stop()


@pytest.fixture
def node(stopped: OvsDummy) -> Iterator[Node]:
    """One that holds no flows yet."""
    with stopped.bridge() as bridge, closing(Node(stopped, bridge)) as made:
        stopped.appctl("time/stop")
        yield made


def limited(egress: int = 0, ingress: int = 0) -> EndpointIntent:
    """The Pod on port 11."""
    return msgspec.structs.replace(cluster.pod(1, 1), egress_bps=egress, ingress_bps=ingress)


MBIT = 10**6


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_pod_sends(node: Node, version: int) -> None:
    """The burst, then the rate: to a Pod here and one elsewhere, of one bucket; others are free."""
    node.load(limited(egress=1 * MBIT))
    assert node.passed(11, 12, 2 * BURST, version=version) == BURST
    assert node.passed(11, 0, 10, version=version) == 0, "one bucket for all that it sends"
    assert node.passed(12, 11, 2 * BURST, version=version) == 2 * BURST
    assert node.passed(12, 0, 10, version=version) == 10
    node.wait(500)
    half = 500 // KBIT
    assert half - 2 <= node.passed(11, 0, 2 * BURST, version=version) <= half + 2


@pytest.mark.parametrize("version", [4, 6])
def test_what_a_pod_receives(node: Node, version: int) -> None:
    """As what it sends; what it sends itself is free."""
    node.load(limited(ingress=1 * MBIT))
    assert node.passed(12, 11, 2 * BURST, version=version) == BURST
    assert node.passed(11, 12, 2 * BURST, version=version) == 2 * BURST
    node.wait(500)
    half = 500 // KBIT
    assert half - 2 <= node.passed(12, 11, 2 * BURST, version=version) <= half + 2


def test_a_changed_limit_counts_at_once(node: Node) -> None:
    """Also one that comes, and one that goes, with the flows that stand."""
    node.load(limited())
    assert node.passed(11, 0, 3 * BURST) == 3 * BURST
    node.load(limited(egress=1 * MBIT))
    assert node.passed(11, 0, 2 * BURST) == BURST
    node.load(limited(egress=4 * MBIT))
    node.wait(1000)
    burst = 2_000 // KBIT
    assert burst - 2 <= node.passed(11, 0, 2 * burst) <= burst + 2, "half a second's"
    node.load(limited())
    assert node.passed(11, 0, 3 * burst) == 3 * burst
