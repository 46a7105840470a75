"""Limits of a Pod as meters, and where its flows name them."""

from ipaddress import ip_address

import msgspec
import pytest

from dunlin.events.intents import EndpointIntent
from dunlin.openflow.flow import Flow, Meter, MeterAction, Output
from dunlin.pipeline import compile_intent, switch_context
from dunlin.pipeline.bandwidth import direction_of, meters
from dunlin.pipeline.layout import DENY_METER, EGRESS_METERS, INGRESS_METERS, Table
from tests.fixtures import cluster

FREE = cluster.pod(1, 1)
EGRESS, INGRESS = EGRESS_METERS | 11, INGRESS_METERS | 11


def limited(egress: int = 0, ingress: int = 0) -> EndpointIntent:
    """A Pod on port 11 with an address of each family."""
    return msgspec.structs.replace(FREE, egress_bps=egress, ingress_bps=ingress)


def flows(intent: EndpointIntent) -> list[Flow]:
    """Its flows on n1."""
    return list(compile_intent(intent, switch_context(cluster.switch(1))).flows)


@pytest.mark.parametrize(
    ("bps", "rate", "burst"),
    [
        (1_000, 1, 1100),
        (1_999, 1, 1100),
        (2_000_000, 2_000, 1100),
        (20_000_000, 20_000, 10_000),
        (10_000_000_000, 10_000_000, 5_000_000),
        (10**15, 0xFFFFFFFF, 0x7FFFFFFF),
    ],
)
def test_rate_and_burst(bps: int, rate: int, burst: int) -> None:
    """In kbit; half a second, or two packets that userspace-tso has not cut."""
    assert meters(limited(egress=bps)) == (Meter(EGRESS, rate, burst, "kbps"),)
    assert meters(limited(ingress=bps)) == (Meter(INGRESS, rate, burst, "kbps"),)


def test_flows_name_them_first_wherever_packets_come_and_go() -> None:
    """All that it sends after the guard; all that is delivered to it, hairpins too."""
    found = flows(limited(20_000_000, 50_000_000))
    sent = [f for f in found if f.actions == (MeterAction(EGRESS),)]
    assert [(f.table, f.goto) for f in sent] == [(Table.CLASSIFIER, Table.UNSNAT)] * 2
    out = [f for f in found if any(isinstance(action, Output) for action in f.actions)]
    assert {f.table for f in out} == {Table.L3_FORWARD, Table.HAIRPIN_OUTPUT}
    assert len(out) == 4
    assert all(f.actions[0] == MeterAction(INGRESS) for f in out)


def test_a_rate_alone_changes_no_flow() -> None:
    """And without limits there is no meter at all."""
    assert flows(limited(20_000_000, 50_000_000)) == flows(limited(1_000, 2_000))
    assert flows(limited()) == flows(FREE)
    assert meters(limited()) == ()
    actions = [action for flow in flows(FREE) for action in flow.actions]
    assert not any(isinstance(action, MeterAction) for action in actions)


def test_meters_of_pods_are_known_by_their_ids() -> None:
    """Of every OpenFlow port there can be; that of denied packets is none."""
    for port in (1, 0xFEFF):
        assert direction_of(EGRESS_METERS | port) == "egress"
        assert direction_of(INGRESS_METERS | port) == "ingress"
    assert direction_of(DENY_METER) == ""
    assert ip_address("10.0.1.11") in FREE.ips
