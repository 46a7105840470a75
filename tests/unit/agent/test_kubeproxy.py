"""kube-proxy's metrics of a node: names, buckets and units as clusterloader2 reads them."""

import asyncio
import socket

from prometheus_client.parser import text_string_to_metric_families

from dunlin.events.state import Applied
from dunlin_agent.health.kubeproxy import KubeProxy, now_ms
from dunlin_agent.health.programming import PENDING_MAX, Programming

STARTED = 1_000_000
PROGRAMMING = "kubeproxy_network_programming_duration_seconds"
SYNC = "kubeproxy_sync_proxy_rules_duration_seconds"


def applied(revision: int, sync_ms: float | None = None) -> Applied:
    """An acknowledgement."""
    return Applied(node="n1", dpid=1, revision=revision, epoch="e", connected=True, sync_ms=sync_ms)


def samples(proxy: KubeProxy) -> dict[tuple[str, str], float]:
    """(name, le) -> value, as Prometheus reads the answer."""
    reply = proxy.answer("/metrics")
    assert reply.status == 200
    families = text_string_to_metric_families(reply.body.decode())
    return {
        (sample.name, sample.labels.get("le", "")): sample.value
        for family in families
        for sample in family.samples
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


def test_names_buckets_and_units_are_kube_proxys() -> None:
    """0.25, 0.5, 1 … 59, 60 … 115, 120 … 300 seconds; 1 ms to 16 s, doubling."""
    proxy = KubeProxy()
    proxy.service_read(3, now_ms())
    proxy.applied(applied(3, 20.0))
    proxy.applied(applied(3, 20.0))
    read = samples(proxy)
    limits = [le for name, le in read if name == f"{PROGRAMMING}_bucket"]
    expected = [0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30)]
    assert [float(le) for le in limits] == [*map(float, expected), float("inf")]
    limits = [le for name, le in read if name == f"{SYNC}_bucket"]
    assert [float(le) for le in limits] == [*(0.001 * 2**i for i in range(15)), float("inf")]
    assert read[f"{PROGRAMMING}_count", ""] == 1
    assert 0 <= read[f"{PROGRAMMING}_sum", ""] < 60
    assert read[f"{SYNC}_count", ""] == 1
    assert read[f"{SYNC}_sum", ""] == 0.02


async def test_they_are_served_where_kube_proxy_serves_them() -> None:
    """GET /metrics over a real socket; any other path is 404."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serving = asyncio.create_task(KubeProxy().serve(f"127.0.0.1:{port}"))
    answers = [await get(port, path) for path in ("/metrics", "/other")]
    serving.cancel()
    assert answers[0].startswith(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4")
    assert f"{PROGRAMMING}_count 0.0".encode() in answers[0]
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
