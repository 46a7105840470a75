"""Health checks of load balancers: what is counted, what is answered, and over real sockets."""

import asyncio
import json
import socket
from ipaddress import ip_address

import msgspec

from dunlin.events.facts import Protocol
from dunlin.events.intents import (
    LocalFamily,
    LocalServiceIntent,
    ServiceAddress,
    ServiceEndpoint,
    ServicePortIntent,
)
from dunlin_agent.health.core import GRACE_S, HealthChecks, ProxyHealth, Reply
from dunlin_agent.health.http import listen, respond


def service(name: str, port_name: str, check: int) -> ServicePortIntent:
    """A ServicePort of a load balancer."""
    return ServicePortIntent(
        scope="all",
        key=f"shop/{name}:{port_name}/TCP",
        service_namespace="shop",
        service_name=name,
        protocol=Protocol.TCP,
        port=80,
        addresses=(ServiceAddress(ip=ip_address("10.96.0.1"), group_id=256),),
        health_check_node_port=check,
    )


def local(name: str, port_name: str, *ips: str) -> LocalServiceIntent:
    """Its endpoints on this node."""
    families = tuple(
        LocalFamily(
            version=version,
            group_id=256,
            local=tuple(
                ServiceEndpoint(ip=ip_address(ip), port=8080)
                for ip in ips
                if ip_address(ip).version == version
            ),
        )
        for version in (4, 6)
    )
    return LocalServiceIntent(
        scope="n1",
        key=f"shop/{name}:{port_name}/TCP",
        service_namespace="shop",
        service_name=name,
        protocol=Protocol.TCP,
        families=families,
    )


def test_endpoints_are_pods_not_ports() -> None:
    """Two ports and two families of two Pods are two endpoints, and kube-proxy's JSON says so."""
    checks = HealthChecks()
    checks.put(service("web", "http", 32000))
    checks.put(service("web", "https", 32000))
    checks.put(local("web", "http", "10.0.0.1", "10.0.0.2", "fd00::1", "fd00::2"))
    checks.put(local("web", "https", "10.0.0.1", "fd00::1"))
    reply = checks.answer(32000, healthy=True)
    assert reply.status == 200
    assert reply.headers == (("X-Load-Balancing-Endpoint-Weight", "2"),)
    assert json.loads(reply.body) == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert checks.answer(32000, healthy=False).status == 503


def test_services_come_and_go() -> None:
    """Ports follow the intents; no local endpoint is 503; a port is the first's by name."""
    checks = HealthChecks()
    first, second = service("a", "http", 32000), service("b", "http", 32000)
    checks.put(second)
    checks.put(first)
    assert checks.ports() == {32000: ("shop", "a")}
    assert checks.answer(32000, healthy=True).status == 503
    own = local("a", "http", "10.0.0.1")
    checks.put(own)
    assert checks.answer(32000, healthy=True).status == 200
    checks.remove(own.id)
    assert checks.answer(32000, healthy=True).status == 503
    checks.put(msgspec.structs.replace(first, health_check_node_port=32001))
    assert checks.ports() == {32000: ("shop", "b"), 32001: ("shop", "a")}
    checks.remove(first.id)
    checks.remove(second.id)
    assert checks.ports() == {}


def test_proxy_health() -> None:
    """Unwell before the first time; well through a lag shorter than the grace; node eligible."""
    proxy = ProxyHealth()
    proxy.observe("starting", 0.0, 1000.0)
    assert proxy.answer("/healthz", 1.0, 1001.0, eligible=True).status == 503
    proxy.observe(None, 2.0, 1002.0)
    proxy.observe("behind", 3.0, 1003.0)
    assert proxy.healthy(2.9 + GRACE_S)
    assert not proxy.healthy(3.0 + GRACE_S)
    proxy.observe(None, 100.0, 1100.0)
    assert proxy.answer("/healthz", 101.0, 1101.0, eligible=True).status == 200
    assert proxy.answer("/healthz", 101.0, 1101.0, eligible=False).status == 503
    leaving = proxy.answer("/livez", 101.0, 1101.0, eligible=False)
    assert leaving.status == 200
    assert json.loads(leaving.body)["nodeEligible"] is False
    assert proxy.answer("/other", 101.0, 1101.0, eligible=True).status == 404


def test_requests() -> None:
    """GET and HEAD are answered; everything else is refused without harm."""
    reply = Reply(200, b"{}\n", (("X-A", "b"),))
    assert respond(b"GET /x?y HTTP/1.1\r\n\r\n", lambda path: Reply(200, path.encode())).endswith(
        b"\r\n\r\n/x"
    )
    head = respond(b"HEAD / HTTP/1.0\r\n\r\n", lambda _: reply)
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert head.endswith(b"X-A: b\r\n\r\n")
    assert respond(b"POST / HTTP/1.1\r\n\r\n", lambda _: reply).startswith(b"HTTP/1.1 405 ")
    for garbage in (b"\r\n\r\n", b"\xff\xfe\r\n\r\n", b"GET /\r\n\r\n", b"GET / FTP/1\r\n\r\n"):
        assert respond(garbage, lambda _: reply).startswith(b"HTTP/1.1 400 ")


async def test_both_families_on_one_port() -> None:
    """A port is open on IPv4 and IPv6; a second listener on it is an error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = await listen(port, lambda _: Reply(200, b"yes"))
    async with server:
        for host in ("127.0.0.1", "::1"):
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(b"GET / HTTP/1.1\r\nHost: n\r\n\r\n")
            assert (await reader.read()).endswith(b"yes")
            writer.close()
        try:
            second = await listen(port, lambda _: Reply(200, b"no"))
        except OSError:
            second = None
        assert second is None
