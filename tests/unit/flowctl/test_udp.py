"""Which UDP connections a change of a Service makes stale."""

from ipaddress import ip_address

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin.events.facts import Protocol
from dunlin.events.intents import (
    HostPortIntent,
    LocalFamily,
    LocalServiceIntent,
    ServiceAddress,
    ServiceEndpoint,
    ServicePortIntent,
)
from dunlin.model.ids import IntentId
from dunlin.openflow.codec import CtFlush, CtTuple
from dunlin.pipeline.udp import NOTHING, UdpService, udp_host_port, udp_service
from dunlin_flowctl.conntrack import UdpKey, udp_key
from dunlin_flowctl.core.udp import stale

F4, F6 = ip_address("10.96.0.1"), ip_address("fd96::1")
A, B, C = (ip_address(f"10.0.0.{i}") for i in (1, 2, 3))
A6 = ip_address("fd00::1")
NODE = ip_address("192.0.2.1")


def service(*endpoints: str, port: int = 53, **more: object) -> ServicePortIntent:
    """A UDP ServicePort on both families."""
    intent = ServicePortIntent(
        scope="all",
        key="shop/dns:dns/UDP",
        service_namespace="shop",
        service_name="dns",
        protocol=Protocol.UDP,
        port=port,
        addresses=(ServiceAddress(ip=F4, group_id=256), ServiceAddress(ip=F6, group_id=512)),
        endpoints=tuple(ServiceEndpoint(ip=ip_address(e), port=8053) for e in endpoints),
    )
    return msgspec.structs.replace(intent, **more)


def flush(dst: object, port: int, src: object = None, src_port: int = 0) -> CtFlush:
    """As `stale` names it."""
    return CtFlush(64000, 17, CtTuple(dst=dst, dst_port=port), CtTuple(src=src, src_port=src_port))  # type: ignore[arg-type]


def changed(old: ServicePortIntent | None, new: ServicePortIntent | None) -> list[CtFlush]:
    """`stale` of two intents."""
    return list(stale(udp_service(old, None, (NODE,)), udp_service(new, None, (NODE,))))


ONE, TWO = service(str(A)), service(str(A), str(B))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (TWO, TWO, []),
        (ONE, TWO, []),
        (TWO, ONE, [flush(F4, 53, B, 8053)]),
        (service(str(A), str(A6)), ONE, [flush(F6, 53)]),
        (ONE, service(), [flush(F4, 53)]),
        (service(), ONE, [flush(F4, 53, F4, 53)]),
        (None, ONE, [flush(F4, 53, F4, 53)]),
        (ONE, None, [flush(F4, 53)]),
        (service(), None, []),
        (ONE, service(str(A), port=54), [flush(F4, 53), flush(F4, 54, F4, 54)]),
        (ONE, service(str(A), node_port=30053), [flush(NODE, 30053, NODE, 30053)]),
        (
            service(str(A), str(B), node_port=30053),
            service(str(B), node_port=30053),
            [flush(F4, 53, A, 8053), flush(NODE, 30053, A, 8053)],
        ),
    ],
)
def test_exactly_what_a_change_concerns(
    old: ServicePortIntent | None, new: ServicePortIntent | None, expected: list[CtFlush]
) -> None:
    """Endpoints and frontends that go and come; the other family is left alone."""
    assert changed(old, new) == expected


def test_tcp_is_left_alone() -> None:
    """TCP connections end by themselves."""
    tcp = msgspec.structs.replace(TWO, protocol=Protocol.TCP)
    assert udp_service(tcp) == NOTHING
    assert changed(tcp, None) == []


def test_an_endpoint_of_the_node_itself_counts() -> None:
    """One that terminates on this node serves the policy Local there although the rest lost it."""
    own = LocalServiceIntent(
        scope="n1",
        key=ONE.key,
        service_namespace="shop",
        service_name="dns",
        protocol=Protocol.UDP,
        families=(
            LocalFamily(
                version=4,
                group_id=256,
                local_group_id=768,
                local=(ServiceEndpoint(ip=B, port=8053),),
            ),
        ),
    )
    assert stale(udp_service(TWO, own), udp_service(ONE, own)) == ()
    assert len(stale(udp_service(ONE, own), udp_service(ONE))) == 1


def host_port(*endpoints: object, **more: object) -> HostPortIntent:
    """UDP port 53 of a node, for a Pod's port 8053."""
    intent = HostPortIntent(
        scope="n1",
        key="shop/dns-0:53/UDP",
        pod_namespace="shop",
        pod_name="dns-0",
        protocol=Protocol.UDP,
        port=53,
        endpoints=tuple(ServiceEndpoint(ip=ip, port=8053) for ip in endpoints),  # type: ignore[arg-type]
    )
    return msgspec.structs.replace(intent, **more)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (None, host_port(A), [flush(NODE, 53, NODE, 53)]),
        (host_port(A), None, [flush(NODE, 53)]),
        (host_port(A), host_port(B), [flush(NODE, 53, A, 8053)]),
        (host_port(A), host_port(A, A6), []),
        (host_port(A), host_port(A, host_ip=ip_address("192.0.2.9")), [flush(NODE, 53)]),
        (None, host_port(A, protocol=Protocol.TCP), []),
    ],
    ids=["comes", "goes", "another Pod", "the same", "another address", "TCP"],
)
def test_a_host_port(
    old: HostPortIntent | None, new: HostPortIntent | None, expected: list[CtFlush]
) -> None:
    """As a Service with one endpoint, at all the addresses of its node."""
    own = (NODE,)
    assert list(stale(udp_host_port(old, own), udp_host_port(new, own))) == expected


@pytest.mark.parametrize(
    ("intent", "expected"),
    [
        ("all/service/shop/dns:53/UDP", UdpKey("service", "shop/dns:53/UDP")),
        ("n1/localservice/shop/dns:53/UDP", UdpKey("service", "shop/dns:53/UDP")),
        ("n1/hostport/shop/dns:53/UDP", UdpKey("hostport", "shop/dns:53/UDP")),
        ("n1/hostport/shop/dns:53/TCP", None),
        ("n1/endpoint/shop/dns/UDP", None),
    ],
)
def test_which_intents_are_about_udp(intent: str, expected: UdpKey | None) -> None:
    """A Pod's hostPort is never taken for a Service of its name."""
    assert udp_key(IntentId(intent)) == expected


addresses = st.tuples(st.sampled_from([A, B, C, A6]), st.sampled_from([1, 2]))
frontends = st.tuples(st.sampled_from([F4, F6]), st.sampled_from([53, 54]))
services = st.builds(UdpService, st.frozensets(frontends), st.frozensets(addresses))


@given(services, services)
def test_connections_to_what_is_left_stay(old: UdpService, new: UdpService) -> None:
    """Every possible connection of `old`: it is removed exactly when `new` would not make it."""
    flushes = stale(old, new)
    for frontend in old.frontends:
        for endpoint in old.endpoints:
            if endpoint[0].version != frontend[0].version:
                continue
            hit = any(_matches(item, frontend, endpoint) for item in flushes)
            assert hit == (frontend not in new.frontends or endpoint not in new.endpoints)
    for frontend in new.frontends:
        for endpoint in new.endpoints & old.endpoints:
            same = endpoint[0].version == frontend[0].version
            if frontend in old.frontends and same:
                assert not any(_matches(item, frontend, endpoint) for item in flushes)


def _matches(item: CtFlush, frontend: object, endpoint: object) -> bool:
    assert item.orig.dst is not None
    if (item.orig.dst, item.orig.dst_port) != frontend:
        return False
    return item.reply.src is None or (item.reply.src, item.reply.src_port) == endpoint
