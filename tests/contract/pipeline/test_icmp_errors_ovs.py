"""ICMP errors about translated connections on a real switch: they reach whoever sent too much."""

import struct
from ipaddress import ip_address

import pytest

from dunlin.events.facts import AnyFact, Endpoint, Protocol
from tests.fixtures.ovs_dummy import OvsBridge
from tests.fixtures.ovs_site import (
    CLUSTER_IP,
    CLUSTER_IP6,
    OUTSIDE,
    POD,
    Site,
    Udp,
    checksum,
    datagram,
    ip_packet,
    pick,
    pseudo,
    udp,
    web,
)
from tests.packets.test_host_ports import asking
from tests.packets.world import CLIENT, CLIENT6, GATEWAY, NODE_IP, NODE_IP6, UPLINK, at, pod_ip

pytestmark = pytest.mark.ovs

FAR, FAR6 = "192.0.2.77", "2001:db8::77"
ROUTER, ROUTER6 = "192.0.2.254", "2001:db8::254"


def too_big(router: str, about: bytes) -> bytes:
    """ICMP's "fragmentation needed" or "packet too big" of 1,300 octets, to whom sent `about`."""
    version = about[0] >> 4
    source = about[12:16] if version == 4 else about[8:24]
    target = str(ip_address(source))
    kind, code, protocol = (3, 4, 1) if version == 4 else (2, 0, 58)
    bare = struct.pack("!BBHI", kind, code, 0, 1300) + about
    counted = bare if version == 4 else pseudo(router, target, protocol, len(bare)) + bare
    body = bare[:2] + struct.pack("!H", checksum(counted)) + bare[4:]
    return ip_packet(router, target, protocol, body)


def error(packet: bytes) -> tuple[str, Udp]:
    """To whom an ICMP error goes, and about what; its checksums are right."""
    v4 = packet[0] >> 4 == 4
    head = 20 if v4 else 40
    length = int.from_bytes(packet[2:4], "big") if v4 else 40 + int.from_bytes(packet[4:6], "big")
    body = packet[head:length]
    assert body[0] == (3 if v4 else 2)
    assert int.from_bytes(body[4:8], "big") == 1300
    src, dst = (packet[12:16], packet[16:20]) if v4 else (packet[8:24], packet[24:40])
    target = str(ip_address(dst))
    counted = body if v4 else pseudo(str(ip_address(src)), target, 58, len(body)) + body
    assert checksum(counted) == 0
    if v4:
        assert checksum(packet[:20]) == 0
        assert checksum(body[8:28]) == 0
    return target, datagram(body[8:])


OVS_BUG = pytest.mark.xfail(
    strict=True,
    reason="Open vSwitch (3.1, 3.5) writes the inner checksum to the wrong place: docs/LIMITS.md",
)


@pytest.fixture(params=[4, pytest.param(6, marks=OVS_BUG)], ids=["IPv4", "IPv6"])
def version(request: pytest.FixtureRequest) -> int:
    """Of the test's packets."""
    return int(request.param)


@pytest.mark.parametrize("by", ["NodePort", "hostPort"])
def test_about_an_answer_from_here(bridge: OvsBridge, version: int, by: str) -> None:
    """To an outside client whose address is kept: the error reaches the Pod, about its packet."""
    facts: tuple[AnyFact, ...] = web(at(1, 1, version=version))
    port = 30080
    if by == "hostPort":
        facts, port = (asking(protocol=Protocol.UDP),), 8000
    site = Site(bridge, *facts)
    client, own = pick(version, CLIENT, CLIENT6), pick(version, NODE_IP, NODE_IP6)
    site.send(OUTSIDE, udp(Udp(client, 40000, own, port)))
    request = datagram(site.out(POD))
    assert request == Udp(client, 40000, pod_ip(1, 1, version), 8080)
    site.send(POD, udp(request.back))
    answer = site.out(GATEWAY, UPLINK)
    assert datagram(answer) == Udp(own, port, client, 40000)
    site.send(OUTSIDE, too_big(pick(version, ROUTER, ROUTER6), answer))
    assert error(site.out(POD)) == (request.dst, request.back)


def test_about_an_answer_from_elsewhere(bridge: OvsBridge, version: int) -> None:
    """The client's address is translated: the error goes on to the endpoint on its node."""
    site = Site(bridge, *web(at(2, 1, version=version)))
    client, own = pick(version, CLIENT, CLIENT6), pick(version, NODE_IP, NODE_IP6)
    site.send(OUTSIDE, udp(Udp(client, 40000, own, 30080)))
    request = datagram(site.out(UPLINK))
    assert request.dst == pod_ip(2, 1, version)
    assert request.src != client
    site.send(UPLINK, udp(request.back))
    answer = site.out(GATEWAY, UPLINK)
    assert datagram(answer) == Udp(own, 30080, client, 40000)
    site.send(OUTSIDE, too_big(pick(version, ROUTER, ROUTER6), answer))
    assert error(site.out(UPLINK)) == (request.dst, request.back)


@pytest.mark.parametrize("who", ["Pod", "node"])
def test_about_a_request(bridge: OvsBridge, version: int, who: str) -> None:
    """To an endpoint beyond the cluster: the error reaches the client, about the cluster IP."""
    far = Endpoint(ip=ip_address(pick(version, FAR, FAR6)))
    site = Site(bridge, *web(far))
    own = pick(version, NODE_IP, NODE_IP6)
    client = pod_ip(1, 1, version) if who == "Pod" else own
    sent = Udp(client, 40000, pick(version, CLUSTER_IP, CLUSTER_IP6), 80)
    port = POD if who == "Pod" else GATEWAY
    site.send(port, udp(sent))
    request = site.out(GATEWAY, UPLINK)
    assert datagram(request)[2:] == (str(far.ip), 8080)
    assert datagram(request).src == own
    site.send(OUTSIDE, too_big(pick(version, ROUTER, ROUTER6), request))
    assert error(site.out(port)) == (client, sent)
