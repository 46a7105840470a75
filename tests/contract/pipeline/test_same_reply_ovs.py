"""
One client port, to a Service and to its endpoint directly, through a real switch. ADR 0044.

Both connections have the same replies: unless the second one gets a port of its own, its answers
are taken for those of the first. What gives it one ends an Open vSwitch that is too old for it.
"""

from contextlib import closing
from ipaddress import ip_address

import pytest

from dunlin.events.facts import AnyFact, Endpoint, ServicePort
from dunlin_planner.ovs_version import survives_null_nat
from tests.contract.pipeline.test_icmp_errors_ovs import error, too_big
from tests.fixtures.ovs_dummy import ControlSocket, OvsBridge
from tests.fixtures.ovs_site import (
    CLUSTER_IP,
    CLUSTER_IP6,
    POD,
    Site,
    Udp,
    datagram,
    frame_to,
    pick,
    tcp,
    udp,
    web,
)
from tests.packets.world import (
    GATEWAY,
    NODE_IP,
    NODE_IP6,
    UPLINK,
    at,
    endpoints,
    pod_ip,
    service,
)

pytestmark = pytest.mark.ovs
PORT = 40000
SYN, RST, ACK, SYN_ACK = 0x02, 0x04, 0x10, 0x12


@pytest.fixture
def able(bridge: OvsBridge) -> OvsBridge:
    """… of an Open vSwitch that survives nat(src)."""
    if not survives_null_nat(bridge.ovs.version):
        pytest.skip(f"Open vSwitch {bridge.ovs.version} mixes them up; DUNLIN_OVS_PREFIX: another")
    return bridge


def answered(site: Site, sent: Udp) -> tuple[Udp, Udp]:
    """What the Pod hears of a datagram of the node, and what the node hears of the answer."""
    site.send(GATEWAY, udp(sent))
    heard = datagram(site.out(POD))
    site.send(POD, udp(heard.back))
    return heard, datagram(site.out(GATEWAY))


def calls(version: int) -> tuple[Udp, Udp]:
    """To the Service, and to its endpoint."""
    own, pod = pick(version, NODE_IP, NODE_IP6), pod_ip(1, 1, version)
    service = Udp(own, PORT, pick(version, CLUSTER_IP, CLUSTER_IP6), 80)
    return service, Udp(own, PORT, pod, 8080)


@pytest.mark.parametrize("generation", [0, 7], ids=["no policy", "policies"])
@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
@pytest.mark.parametrize("first", ["Service", "Pod"])
def test_both_are_answered(able: OvsBridge, version: int, generation: int, first: str) -> None:
    """Each hears from whom it has called, whichever comes first; again and again."""
    site = Site(able, *web(at(1, 1, version=version)), generation=generation)
    service, direct = calls(version)
    both = [service, direct] if first == "Service" else [direct, service]
    heard: list[Udp] = []
    for call in (*both, *both, *both):
        request, answer = answered(site, call)
        assert request._replace(sport=PORT) == direct
        assert answer == call.back
        heard.append(request)
    assert heard[0].sport == PORT
    assert heard[0] != heard[1]
    assert heard[:2] == heard[2:4] == heard[4:]


@pytest.mark.parametrize("generation", [0, 7], ids=["no policy", "policies"])
def test_who_never_hears_keeps_its_port(able: OvsBridge, generation: int) -> None:
    """Datagrams without any answer stay new to conntrack: each is entered anew, as the first."""
    site = Site(able, *web(at(1, 1)), generation=generation)
    heard = []
    for call in calls(4) * 3:
        site.send(GATEWAY, udp(call))
        heard.append(datagram(site.out(POD)))
    assert heard[0] != heard[1]
    assert heard[:2] == heard[2:4] == heard[4:]


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
def test_a_client_of_another_node_is_left_alone(bridge: OvsBridge, version: int) -> None:
    """Its connections to Pods have no NAT, about which conntrack spoils ICMPv6 errors."""
    site = Site(bridge, *web(at(1, 1, version=version)))
    sent = Udp(pod_ip(2, 1, version), PORT, pod_ip(1, 1, version), 8080)
    site.send(UPLINK, udp(sent))
    assert datagram(site.out(POD)) == sent
    site.send(POD, udp(sent.back))
    answer = site.out(UPLINK)
    assert datagram(answer) == sent.back
    router = pick(version, "192.0.2.254", "2001:db8::254")
    site.send(UPLINK, too_big(router, answer))
    assert error(site.out(POD)) == (sent.dst, sent.back)


def itself() -> tuple[AnyFact, ...]:
    """default/web at the node's own address, whose one endpoint is on the node's network there."""
    ports = (ServicePort(name="http", port=8080),)
    here = Endpoint(ip=ip_address(NODE_IP), node="n1")
    return service(ports=ports, external_ips=(ip_address(NODE_IP),)), endpoints(here)


@pytest.mark.parametrize("kind", ["Pod", "Service that is its endpoint"])
def test_a_port_is_used_again(bridge: OvsBridge, kind: str) -> None:
    """A client's next connections from a port: the old entry is expired, and not gone."""
    site = Site(bridge, *(web(at(1, 1)) if kind == "Pod" else itself()))
    call = Udp(NODE_IP, PORT, pod_ip(1, 1), 8080)
    here, there = GATEWAY, POD
    if kind != "Pod":
        call, here, there = Udp(pod_ip(1, 1), PORT, NODE_IP, 8080), POD, GATEWAY
    for start in (1_000, 1_000_000, 2_000_000):
        # A second SYN: the first ends the old entry, the second meets what is left of it.
        for flags, seq, ack in ((SYN, 0, 0), (SYN, 0, 0)):
            site.send(here, tcp(call, flags, start + seq, ack))
            assert datagram(site.out(there)) == call
        site.send(there, tcp(call.back, SYN_ACK, 500, start + 1))
        assert datagram(site.out(here)) == call.back
        for flags in (ACK, RST):
            site.send(here, tcp(call, flags, start + 1, 501))
            assert datagram(site.out(there)) == call


def test_thousands_of_both(bridge: OvsBridge) -> None:
    """Few ports, used again and again for both: the switch lives."""
    site = Site(bridge, service(), endpoints(at(1, 1)))
    both = (Udp(NODE_IP, 0, CLUSTER_IP, 80), Udp(NODE_IP, 0, pod_ip(1, 1), 8080))
    with closing(ControlSocket(bridge.ovs)) as control:
        for number in range(2_000):
            call = both[number % 2]._replace(sport=PORT + number // 2 % 50)
            for flags, seq in ((SYN, 0), (RST, 1)):
                frame = frame_to(GATEWAY, tcp(call, flags, number * 100_000 + seq))
                control.ask("netdev-dummy/receive", f"{bridge.name}-{GATEWAY}", frame.hex())
    last = Udp(pod_ip(1, 1), PORT, NODE_IP, 9)
    site.send(POD, udp(last))
    assert datagram(site.out(GATEWAY)) == last
