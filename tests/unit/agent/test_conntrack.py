"""Stale UDP connections: what a dump says, which of it is stale; a naive oracle and histories."""

from collections.abc import Iterable
from ipaddress import ip_address, ip_network
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin.events.facts import NodeAddress, Protocol
from dunlin.events.intents import (
    ExternalAddress,
    HostPortIntent,
    LocalFamily,
    LocalServiceIntent,
    ServiceAddress,
    ServiceEndpoint,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin.model.addresses import MacAddress
from dunlin.openflow.codec import CtTuple
from dunlin_agent.conntrack.core import Connections, Entry, parse

OWN = ip_address("192.0.2.1")
SWITCH = SwitchIntent(
    scope="n1",
    key="pipeline",
    dpid=1,
    router_mac=MacAddress("02:00:00:00:00:01"),
    gateway_port=1,
    addresses=(NodeAddress(ip=OWN, subnet=ip_network("192.0.2.0/24")),),
    node_port_ips=(OWN,),
)
DUMP = """\
tcp,orig=(src=10.0.0.9,dst=10.96.0.1,sport=1,dport=53),reply=(src=10.0.0.1,dst=10.0.0.9,sport=8053,dport=1),zone=64000,mark=1,protoinfo=(state=ESTABLISHED)
udp,orig=(src=10.0.0.9,dst=10.96.0.1,sport=40000,dport=53),reply=(src=10.0.0.1,dst=10.0.0.9,sport=8053,dport=40000),zone=64000,mark=257,labels=0x1
udp,orig=(src=fd00::9,dst=fd96::1,sport=40001,dport=53),reply=(src=fd00::1,dst=fd00::9,sport=8053,dport=40001),zone=64000,mark=1
udp,orig=(src=10.0.0.9,dst=192.0.2.77,sport=40002,dport=53),reply=(src=192.0.2.77,dst=10.0.0.9,sport=53,dport=40002),zone=64000
udp,orig=(src=10.0.0.9,dst=192.0.2.77,sport=40002,dport=53),reply=(src=192.0.2.77,dst=192.0.2.1,sport=53,dport=61440),zone=64002
icmp,orig=(src=10.0.0.9,dst=10.0.0.1,id=1,type=8,code=0),reply=(src=10.0.0.1,dst=10.0.0.9,id=1,type=0,code=0),zone=64000
"""


def service(number: int, *endpoints: str, **more: Any) -> ServicePortIntent:
    """UDP ServicePort `number` with port 53 and these endpoints, port 8053."""
    intent = ServicePortIntent(
        scope="all",
        key=f"shop/dns-{number}:dns/UDP",
        service_namespace="shop",
        service_name=f"dns-{number}",
        protocol=Protocol.UDP,
        port=53,
        addresses=(
            ServiceAddress(ip=ip_address("10.96.0.0") + number, group_id=256),
            ServiceAddress(ip=ip_address("fd96::") + number, group_id=512),
        ),
        endpoints=tuple(ServiceEndpoint(ip=ip_address(e), port=8053) for e in endpoints),
    )
    return msgspec.structs.replace(intent, **more)


def entry(dst: str, port: int, answers: str, answers_port: int, *, marked: bool = True) -> Entry:
    """A client's connection."""
    return Entry("10.0.0.9", 40000, dst, port, answers, answers_port, marked)


def stale(entries: Iterable[Entry], *intents: Any) -> set[Entry]:
    """With the switch and these intents."""
    core = Connections()
    for intent in (SWITCH, *intents):
        core.put(intent)
    return set(core.stale(entries))


def test_a_dump() -> None:
    """Only UDP in zone MAIN, with its mark."""
    assert tuple(parse(DUMP)) == (
        Entry("10.0.0.9", 40000, "10.96.0.1", 53, "10.0.0.1", 8053, True),
        Entry("fd00::9", 40001, "fd96::1", 53, "fd00::1", 8053, True),
        Entry("10.0.0.9", 40002, "192.0.2.77", 53, "192.0.2.77", 53, False),
    )


def test_an_entry_is_named_exactly() -> None:
    """By its original direction and who answers: no other connection is removed with it."""
    first = next(parse(DUMP)).flush
    assert first.zone == 64000
    assert first.nw_proto == 17
    assert first.orig == CtTuple(ip_address("10.0.0.9"), ip_address("10.96.0.1"), 40000, 53)
    assert first.reply == CtTuple(src=ip_address("10.0.0.1"), src_port=8053)


@pytest.mark.parametrize(
    ("found", "intents", "expected"),
    [
        (entry("10.96.0.1", 53, "10.0.0.1", 8053), [service(1, "10.0.0.1")], False),
        (entry("10.96.0.1", 53, "10.0.0.2", 8053), [service(1, "10.0.0.1")], True),
        (entry("10.96.0.1", 53, "10.0.0.1", 53), [service(1, "10.0.0.1")], True),
        (entry("10.96.0.1", 53, "10.0.0.1", 8053), [service(1)], True),
        (entry("10.96.0.1", 53, "10.0.0.1", 8053), [], True),
        (entry("10.96.0.1", 53, "10.0.0.1", 8053), [service(1, "10.0.0.1", port=54)], True),
        (entry("10.0.0.5", 53, "10.0.0.5", 53, marked=False), [service(1, "10.0.0.1")], False),
        (
            entry("192.0.2.1", 30053, "192.0.2.1", 30053, marked=False),
            [service(1, "10.0.0.1", node_port=30053)],
            True,
        ),
        (
            entry("192.0.2.2", 30053, "192.0.2.2", 30053, marked=False),
            [service(1, "10.0.0.1", node_port=30053)],
            False,
        ),
        (
            entry("198.51.100.7", 53, "198.51.100.7", 53, marked=False),
            [service(1, "10.0.0.1", external=(ExternalAddress(ip=ip_address("198.51.100.7")),))],
            True,
        ),
    ],
    ids=[
        "to its endpoint", "endpoint gone", "endpoint's port changed", "no endpoints",
        "Service gone", "Service's port changed", "no Service's", "passed before the NodePort was",
        "another node's NodePort", "passed before the external IP was",
    ],
)  # fmt: skip
def test_what_is_stale(found: Entry, intents: list[Any], expected: bool) -> None:
    """As kube-proxy's conntrack reconciler has it."""
    assert (found in stale([found], *intents)) is expected


def host_port(*endpoints: str, port: int = 53) -> HostPortIntent:
    """UDP port 53 of all the node's addresses, for a Pod's port 8053."""
    return HostPortIntent(
        scope="n1",
        key=f"shop/dns-1:{port}/UDP",
        pod_namespace="shop",
        pod_name="dns-1",
        protocol=Protocol.UDP,
        port=port,
        endpoints=tuple(ServiceEndpoint(ip=ip_address(e), port=8053) for e in endpoints),
    )


def test_host_ports() -> None:
    """To the Pod: not stale; to one that went, or untranslated: stale; another's port: neither."""
    asked = host_port("10.0.0.1")
    good = entry("192.0.2.1", 53, "10.0.0.1", 8053)
    gone = entry("192.0.2.1", 53, "10.0.0.2", 8053)
    before = entry("192.0.2.1", 53, "192.0.2.1", 53, marked=False)
    other = entry("192.0.2.1", 54, "192.0.2.1", 54, marked=False)
    assert stale([good, gone, before, other], asked) == {gone, before}
    assert stale([good, before]) == {good}
    core = Connections()
    for intent in (SWITCH, service(1, "10.0.0.1"), asked):
        core.put(intent)
    assert core.stale([good]) == set()
    core.remove(asked.id)
    assert core.stale([good]) == {good}
    core.put(msgspec.structs.replace(SWITCH, addresses=()))
    core.put(asked)
    assert core.stale([good]) == {good}, "the node has lost that address"
    core.put(SWITCH)
    assert core.stale([good]) == set()
    core.clear()
    core.put(SWITCH)
    assert core.stale([good]) == {good}


def test_endpoints_of_the_node_alone_count() -> None:
    """Policy Local may have terminating endpoints that the policy Cluster has not."""
    own = LocalServiceIntent(
        scope="n1",
        key="shop/dns-1:dns/UDP",
        service_namespace="shop",
        service_name="dns-1",
        protocol=Protocol.UDP,
        families=(
            LocalFamily(
                version=4,
                group_id=256,
                local_group_id=768,
                local=(ServiceEndpoint(ip=ip_address("10.0.0.2"), port=8053),),
            ),
        ),
    )
    found = entry("10.96.0.1", 53, "10.0.0.2", 8053)
    assert stale([found], service(1, "10.0.0.1")) == {found}
    assert stale([found], service(1, "10.0.0.1"), own) == set()
    assert stale([found], own) == {found}


def test_nothing_is_stale_before_the_switch_is_known() -> None:
    """Its NodePort addresses are in its intent."""
    core = Connections()
    assert not core.stale([entry("10.96.0.1", 53, "10.0.0.1", 8053)])


def test_tcp_services_are_of_no_account() -> None:
    """A TCP Service on the same address and port says nothing about UDP."""
    tcp = msgspec.structs.replace(
        service(1, "10.0.0.1"), protocol=Protocol.TCP, key="shop/dns-1:dns/TCP"
    )
    found = entry("10.96.0.1", 53, "10.0.0.1", 8053)
    assert stale([found], tcp) == {found}


ENDPOINTS = ["10.0.0.1", "10.0.0.2", "fd00::1"]
SERVICES = st.builds(
    lambda number, endpoints, node_port, port: service(
        number, *endpoints, node_port=node_port, port=port
    ),
    st.integers(1, 2),
    st.lists(st.sampled_from(ENDPOINTS), unique=True),
    st.sampled_from([0, 30053, 30054]),
    st.sampled_from([53, 54]),
)
EVENTS = st.lists(
    st.one_of(
        SERVICES,
        st.sampled_from([SWITCH, msgspec.structs.replace(SWITCH, node_port_ips=())]),
        st.sampled_from([host_port("10.0.0.1"), host_port("10.0.0.2", port=30053)]),
        st.integers(0, 3),
    )
)
ENTRIES = [
    entry(dst, port, answers, answers_port, marked=marked)
    for dst in ("10.96.0.1", "10.96.0.2", "fd96::1", "192.0.2.1", "10.0.0.7")
    for port in (53, 54, 30053)
    for answers in (*ENDPOINTS, dst)
    for answers_port in (8053, 53)
    for marked in (True, False)
]


def naive(
    found: Entry,
    own: SwitchIntent | None,
    services: list[ServicePortIntent],
    host_ports: list[HostPortIntent],
) -> bool:
    """Word by word: it is asked for at a Service or hostPort, and who answers may not."""
    if own is None:
        return False
    asked_for: list[ServicePortIntent | HostPortIntent] = [
        intent
        for intent in host_ports
        if found.dst_port == intent.port and found.dst in {str(a.ip) for a in own.addresses}
    ]
    asked_for += [
        intent
        for intent in services
        if (found.dst, found.dst_port) in {(str(a.ip), intent.port) for a in intent.addresses}
        or (
            intent.node_port == found.dst_port
            and found.dst in {str(ip) for ip in own.node_port_ips}
        )
    ]
    if not asked_for:
        return found.service
    return all(
        (found.answers, found.answers_port) != (str(e.ip), e.port)
        for intent in asked_for
        for e in intent.endpoints
    )


@given(EVENTS)
def test_any_history_ends_as_the_naive_answer(events: list[Any]) -> None:
    """Put, put again, removed (a number: the n-th intent that is there)."""
    core, there = Connections(), dict[Any, Any]()
    for event in events:
        if not isinstance(event, int):
            there[event.id] = event
            core.put(event)
        elif event < len(there):
            key = list(there)[event]
            del there[key]
            core.remove(key)
    own = next((i for i in there.values() if isinstance(i, SwitchIntent)), None)
    services = [i for i in there.values() if isinstance(i, ServicePortIntent)]
    asked = [i for i in there.values() if isinstance(i, HostPortIntent)]
    assert core.stale(ENTRIES) == {e for e in ENTRIES if naive(e, own, services, asked)}


def test_the_oracle_can_fail() -> None:
    """Of the entries that the histories are judged by, some are stale and some are not."""
    found = {naive(e, SWITCH, [service(1, "10.0.0.1", node_port=30053)], []) for e in ENTRIES}
    assert found == {True, False}
