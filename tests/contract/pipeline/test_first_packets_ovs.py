"""
First packets through a real switch, with policies in the cluster: the longest ways there are.

Each ct() that goes on to a table and each dp_hash recirculates, and Open vSwitch drops a packet the
seventh time (lib/dpif-netdev.c, MAX_RECIRC_DEPTH). No tracer of ours knows that.
"""

from ipaddress import ip_address

import pytest

from dunlin.events.facts import Endpoint, Protocol, ServicePort
from dunlin.pipeline.layout import EXTERNAL_PORT_MIN
from tests.fixtures.ovs_dummy import OvsBridge
from tests.fixtures.ovs_site import (
    CLUSTER_IP,
    CLUSTER_IP6,
    OUTSIDE,
    POD,
    Site,
    Udp,
    datagram,
    pick,
    udp,
    web,
)
from tests.packets.world import (
    CLIENT,
    CLIENT6,
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

BOX, BOX6 = "172.17.0.2", "2001:db8:b0b::2"
"""A container on another bridge of the node: its kernel forwards what it sends."""


@pytest.fixture(params=[4, 6], ids=["IPv4", "IPv6"])
def version(request: pytest.FixtureRequest) -> int:
    """Of IP."""
    return int(request.param)


@pytest.fixture(params=[0, 7], ids=["no policy", "policies"])
def generation(request: pytest.FixtureRequest) -> int:
    """Of policy."""
    return int(request.param)


def there_and_back(site: Site, sent: Udp, comes_in: int, goes_out: int, answers_at: int) -> Udp:
    """Two packets of a flow and their answers; what left for the endpoint."""
    left = sent
    for _ in range(2):
        site.send(comes_in, udp(sent))
        left = datagram(site.out(goes_out))
        site.send(answers_at, udp(left.back))
        assert datagram(site.out(GATEWAY, UPLINK)) == sent.back
    return left


def test_from_outside_to_an_endpoint_elsewhere(
    bridge: OvsBridge, version: int, generation: int
) -> None:
    """By a node port, with its source translated: the longest way, also with policies."""
    site = Site(bridge, *web(at(2, 1, version=version)), generation=generation)
    sent = Udp(pick(version, CLIENT, CLIENT6), 40000, pick(version, NODE_IP, NODE_IP6), 30080)
    left = there_and_back(site, sent, OUTSIDE, UPLINK, UPLINK)
    assert (left.dst, left.dport) == (pod_ip(2, 1, version), 8080)
    assert left.sport >= EXTERNAL_PORT_MIN


@pytest.mark.parametrize("count", [1, 60])
@pytest.mark.parametrize("affinity", [0, 100])
def test_no_way_of_choosing_is_too_long(bridge: OvsBridge, affinity: int, count: int) -> None:
    """Few endpoints by a group, many by flows, with and without affinity: all with policies."""
    found = [Endpoint(ip=ip_address("10.244.2.20") + i, node="n2") for i in range(count)]
    ports = (ServicePort(name="http", protocol=Protocol.UDP, port=80, node_port=30080),)
    facts = (
        service(ports=ports, affinity_timeout_s=affinity),
        endpoints(*found, protocol=Protocol.UDP),
    )
    site = Site(bridge, *facts, generation=7)
    left = there_and_back(site, Udp(CLIENT, 40000, NODE_IP, 30080), OUTSIDE, UPLINK, UPLINK)
    assert ip_address(left.dst) in {endpoint.ip for endpoint in found}


def test_from_outside_to_the_node_itself(bridge: OvsBridge, version: int, generation: int) -> None:
    """The node is the endpoint: source translated in zone HAIRPIN."""
    own = pick(version, NODE_IP, NODE_IP6)
    site = Site(bridge, *web(Endpoint(ip=ip_address(own), node="n1")), generation=generation)
    sent = Udp(pick(version, CLIENT, CLIENT6), 40000, own, 30080)
    left = there_and_back(site, sent, OUTSIDE, GATEWAY, GATEWAY)
    assert (left.dst, left.dport) == (own, 8080)


def test_a_container_behind_the_node(bridge: OvsBridge, version: int, generation: int) -> None:
    """To a Pod here with its own address; replies go to the kernel."""
    box, cluster_ip = pick(version, BOX, BOX6), pick(version, CLUSTER_IP, CLUSTER_IP6)
    sent = Udp(box, 40000, cluster_ip, 80)
    site = Site(bridge, *web(at(1, 1, version=version)), generation=generation)
    here = there_and_back(site, sent, GATEWAY, POD, POD)
    assert here == Udp(box, 40000, pod_ip(1, 1, version), 8080)


def test_a_container_behind_the_node_to_elsewhere(
    bridge: OvsBridge, version: int, generation: int
) -> None:
    """From the gateway's address."""
    box, cluster_ip = pick(version, BOX, BOX6), pick(version, CLUSTER_IP, CLUSTER_IP6)
    site = Site(bridge, *web(at(2, 1, version=version)), generation=generation)
    left = there_and_back(site, Udp(box, 40000, cluster_ip, 80), GATEWAY, UPLINK, UPLINK)
    assert (left.dst, left.dport) == (pod_ip(2, 1, version), 8080)
    assert left.src != box
