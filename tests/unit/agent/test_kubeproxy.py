"""kube-proxy's metrics of a node: names, buckets and units as clusterloader2 reads them."""

import asyncio
import socket
from ipaddress import ip_address

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from dunlin.events.facts import Protocol
from dunlin.events.intents import ServiceAddress, ServicePortIntent
from dunlin.events.state import Applied
from dunlin_agent.health.kubeproxy import KubeProxy, now_ms
from dunlin_agent.health.programming import PENDING_MAX, Programming

STARTED = 1_000_000
PROGRAMMING = "kubeproxy_network_programming_duration_seconds"
SYNC = "kubeproxy_sync_proxy_rules_duration_seconds"


def applied(revision: int, sync_ms: float | None = None) -> Applied:
    """An acknowledgement."""
    return Applied(node="n1", dpid=1, revision=revision, epoch="e", connected=True, sync_ms=sync_ms)


def service(*ips: str, trigger_ms: int) -> ServicePortIntent:
    """A Service with these addresses, changed then."""
    return ServicePortIntent(
        scope="all",
        key="d/s:http/TCP",
        service_namespace="d",
        service_name="s",
        protocol=Protocol.TCP,
        port=80,
        addresses=tuple(ServiceAddress(ip=ip_address(ip), group_id=1) for ip in ips),
        endpoints=(),
        trigger_ms=trigger_ms,
    )


def families(proxy: KubeProxy) -> list[Metric]:
    """As Prometheus reads the answer."""
    reply = proxy.answer("/metrics")
    assert reply.status == 200
    return list(text_string_to_metric_families(reply.body.decode()))


def samples(proxy: KubeProxy, ip_family: str) -> dict[tuple[str, str], float]:
    """(name, le) -> value, of one family."""
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in families(proxy)
        for sample in family.samples
        if sample.labels.get("ip_family") == ip_family
    }


def test_a_change_is_measured_once_when_it_is_in_force() -> None:
    """From the trigger to the acknowledgement that holds it, whichever of them is read first."""
    found = Programming(STARTED)
    assert found.changed(5, STARTED + 100, STARTED + 150) == []
    assert found.changed(7, STARTED + 200, STARTED + 250) == []
    assert found.applied(4, STARTED + 300) == []
    assert found.applied(6, STARTED + 1100) == [1.0]
    assert found.applied(6, STARTED + 1200) == []
    assert found.applied(8, STARTED + 2200) == [2.0]
    # The acknowledgement was read before the intent.
    assert found.changed(8, STARTED + 200, STARTED + 3200) == [3.0]


def test_what_was_triggered_before_the_start_is_not_measured() -> None:
    """Nor what has no trigger; a new stream forgets."""
    found = Programming(STARTED)
    assert found.changed(1, STARTED - 1, STARTED) == []
    assert found.changed(2, None, STARTED) == []
    assert found.changed(3, STARTED + 1, STARTED + 2) == []
    found.forget()
    assert found.applied(9, STARTED + 10) == []


def test_a_switch_that_never_answers_costs_bounded_memory() -> None:
    """The newest changes are kept."""
    found = Programming(STARTED)
    for seq in range(2 * PENDING_MAX):
        found.changed(seq + 1, STARTED + seq, STARTED + seq)
    assert len(found.applied(2 * PENDING_MAX, STARTED + 2 * PENDING_MAX)) == PENDING_MAX


def test_names_types_labels_and_help_are_kube_proxys() -> None:
    """As pkg/proxy/metrics of Kubernetes 1.36 registers them: by IP family since 1.34."""
    shown = {family.name: family for family in families(KubeProxy())}
    helps = {
        PROGRAMMING: "In Cluster Network Programming Latency in seconds",
        SYNC: "SyncProxyRules latency in seconds",
    }
    for name, text in helps.items():
        assert (shown[name].type, shown[name].documentation) == ("histogram", text)
        kinds = {
            (sample.name.removeprefix(name), *sorted(sample.labels))
            for sample in shown[name].samples
            if not sample.name.endswith("_created")
        }
        assert kinds == {
            ("_bucket", "ip_family", "le"),
            ("_sum", "ip_family"),
            ("_count", "ip_family"),
        }
        values = {sample.labels["ip_family"] for sample in shown[name].samples}
        assert values == {"IPv4", "IPv6"}


def test_what_clusterloader2_sums_is_there() -> None:
    """Its recording rule sums the buckets of all nodes and families by `le`."""
    proxy = KubeProxy()
    proxy.service_read(3, service("10.0.0.1", "fd00::1", trigger_ms=now_ms()))
    proxy.service_read(4, service("fd00::2", trigger_ms=now_ms()))
    proxy.applied(applied(4, 20.0))
    by_limit: dict[str, float] = {}
    for family in families(proxy):
        for sample in family.samples:
            if sample.name == f"{PROGRAMMING}_bucket":
                le = sample.labels["le"]
                by_limit[le] = by_limit.get(le, 0.0) + sample.value
    assert by_limit["+Inf"] == 3
    assert samples(proxy, "IPv6")[f"{PROGRAMMING}_count", ""] == 2


def test_buckets_and_units_are_kube_proxys() -> None:
    """0, 0.25, 0.5, 1 … 59, 60 … 115, 120 … 300 seconds; 1 ms to 16 s, doubling."""
    proxy = KubeProxy()
    proxy.service_read(3, service("10.0.0.1", trigger_ms=now_ms()))
    proxy.applied(applied(3, 20.0))
    proxy.applied(applied(3, 20.0))
    read = samples(proxy, "IPv4")
    limits = [le for name, le in read if name == f"{PROGRAMMING}_bucket"]
    expected = [0, 0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30)]
    assert [float(le) for le in limits] == [*map(float, expected), float("inf")]
    limits = [le for name, le in read if name == f"{SYNC}_bucket"]
    assert [float(le) for le in limits] == [*(0.001 * 2**i for i in range(15)), float("inf")]
    assert read[f"{PROGRAMMING}_count", ""] == 1
    assert 0 <= read[f"{PROGRAMMING}_sum", ""] < 60
    assert read[f"{SYNC}_count", ""] == 1
    assert read[f"{SYNC}_sum", ""] == 0.02
    assert samples(proxy, "IPv6")[f"{SYNC}_count", ""] == 0, "no Service has had that family"


async def test_they_are_served_where_kube_proxy_serves_them() -> None:
    """GET /metrics over a real socket; any other path is 404."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = asyncio.create_task(KubeProxy().serve(f"127.0.0.1:{port}"))
    answers = [await get(port, path) for path in ("/metrics", "/other")]
    serving.cancel()
    assert answers[0].startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
    assert f'{PROGRAMMING}_count{{ip_family="IPv4"}} 0.0'.encode() in answers[0]
    assert answers[1].startswith(b"HTTP/1.1 404 ")


async def get(port: int, path: str) -> bytes:
    """One request, as soon as somebody listens."""
    async with asyncio.timeout(30):
        while True:
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0)
                continue
            writer.write(f"GET {path} HTTP/1.1\r\nHost: n\r\n\r\n".encode())
            answer = await reader.read()
            writer.close()
            return answer
