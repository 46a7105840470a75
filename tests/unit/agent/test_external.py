"""br-ext's flows: what goes to br-int, what stays the node's."""

from ipaddress import ip_address

from hypothesis import given
from hypothesis import strategies as st

from dunlin.model.addresses import MacAddress
from dunlin.openflow.flow import OFPP_LOCAL, OFPP_NORMAL, Flow, Output, set_field
from dunlin.openflow.packet import matches, packet
from dunlin.pipeline.layout import EXTERNAL_PKT_MARK
from dunlin_agent.external import FRAGMENT, external_flows, port_masks

MAC, OTHER = MacAddress("02:00:00:00:00:01"), MacAddress("02:00:00:00:00:02")
OWN, VIP = ip_address("192.0.2.1"), ip_address("198.51.100.8")
UPLINK, PATCH = 1, 2
FLOWS = external_flows((OWN,), UPLINK, PATCH, MAC, (30000, 32767))


@given(st.integers(1, 65535), st.integers(1, 65535))
def test_masks_are_exactly_the_range(one: int, other: int) -> None:
    """Every port of the range once, none beside it, in few masks."""
    first, last = sorted((one, other))
    masks = list(port_masks(first, last))
    for port in (first - 1, first, (first + last) // 2, last, last + 1):
        assert sum(port & mask == value for value, mask in masks) == (first <= port <= last)
    assert len(masks) <= 30


def test_the_default_range_is_five_masks() -> None:
    """As many flows as that a protocol and address."""
    assert len(list(port_masks(30000, 32767))) == 5


def met(**fields: object) -> Flow | None:
    """The flow that a packet meets; None: NORMAL."""
    values = packet(**fields)  # type: ignore[arg-type]
    # The tracer has no word for fragments: these packets are none.
    found = [f for f in FLOWS if FRAGMENT not in f.match]
    found = [f for f in found if all(matches(values, item) for item in f.match)]
    return max(found, key=lambda flow: flow.priority, default=None)


def tcp(port: int, target: object, mac: MacAddress = MAC, in_port: int = UPLINK) -> Flow | None:
    """What a TCP packet meets."""
    return met(
        in_port=in_port, eth_dst=mac, eth_type=0x800, nw_proto=6, nw_dst=target, tcp_dst=port
    )


def to_br_int(flow: Flow | None) -> bool:
    """It is marked and passed on."""
    return flow is not None and Output(PATCH) in flow.actions


def test_what_goes_to_br_int() -> None:
    """Node ports, Pods' answers, and what is routed here for an address that is not the node's."""
    assert to_br_int(tcp(30000, OWN))
    assert to_br_int(tcp(32767, OWN))
    assert to_br_int(tcp(61440, OWN))
    assert to_br_int(tcp(80, VIP))


def test_what_stays_the_nodes() -> None:
    """Its own ports, and frames for another MAC address."""
    for port in (22, 6443, 29999, 32768, 61439):
        flow = tcp(port, OWN)
        assert flow is not None
        assert flow.actions == (Output(OFPP_NORMAL),)
    assert tcp(80, VIP, OTHER) is None


def test_what_br_int_gives_back_goes_to_the_node() -> None:
    """Also what is not for it: br-ext must not learn the sender on the patch port."""
    for target in (OWN, VIP):
        flow = tcp(80, target, in_port=PATCH)
        assert flow is not None
        assert flow.actions == (Output(OFPP_LOCAL),)


def test_everything_passed_on_is_marked() -> None:
    """What br-ext merely floods must not be taken for it."""
    mark = set_field("pkt_mark", EXTERNAL_PKT_MARK)
    for flow in FLOWS:
        if to_br_int(flow):
            assert mark in flow.actions
