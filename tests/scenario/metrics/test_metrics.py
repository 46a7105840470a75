"""The whole metrics service: bus in memory, flowctl over HTTP, REST and Prometheus."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest_asyncio

from dunlin import wire
from dunlin.bus.base import Message
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.service.app import ServiceApp
from dunlin_metrics.__main__ import setup
from dunlin_metrics.config import Settings
from tests.scenario.metrics.fake_flowctl import FakeFlowctl, switch
from tests.unit.metrics.build import applied, facts, intents

DEADLINE_S = 10.0
E1, E2 = "10.0.1.11:8080", "10.0.1.12:8080"


@dataclass
class World:
    """A running service and what it reads."""

    server: MemoryServer
    bus: MemoryBus
    flowctl: FakeFlowctl
    app: ServiceApp[Settings]
    http: httpx.AsyncClient

    async def get(self, path: str) -> Any:
        """A REST answer."""
        answer = await self.http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, path: str, reached: Callable[[Any], bool]) -> Any:
        """The first answer that satisfies."""
        async with asyncio.timeout(DEADLINE_S):
            while not reached(answer := await self.get(path)):
                await asyncio.sleep(0.02)
        return answer

    async def polled(self) -> None:
        """Wait until two more rounds have begun: one of them saw everything that was set before."""
        asked = self.flowctl.asked
        async with asyncio.timeout(DEADLINE_S):
            while self.flowctl.asked < asked + 2 * max(1, len(self.flowctl.counters)):
                await asyncio.sleep(0.02)

    async def samples(self) -> str:
        """The text of /metrics."""
        return (await self.http.get("/metrics")).text


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A cluster in the streams, two connected switches."""
    server, flowctl = MemoryServer(), FakeFlowctl()
    bus = MemoryBus(server)
    await bus.ensure_streams()
    for message in (*facts(), *intents(), applied("n1"), applied("n2")):
        await bus.publish(Message(message.subject, wire.encode(message)))  # type: ignore[attr-defined]
    flowctl.counters = {
        "n1": switch("n1", pods={"p11": (5000, 3000)}, routes={"n2": 4000}),
        "n2": switch("n2", pods={"p21": (100, 200)}, routes={"n1": 50}),
    }
    flowctl.elsewhere = ["n3"]
    await flowctl.start()
    token = tmp_path / "token"
    token.write_text("secret\n")
    settings = Settings(
        flowctl_urls=(flowctl.url,), flowctl_token=str(token), poll_interval_s=0.2, poll_timeout_s=2
    )
    app = ServiceApp("metrics", settings, bus=MemoryBus(server))
    running = asyncio.create_task(app.run(setup))
    async with asyncio.timeout(DEADLINE_S):
        while not app.url:
            await asyncio.sleep(0.01)
    async with httpx.AsyncClient(base_url=app.url, trust_env=False) as http:
        made = World(server, bus, flowctl, app, http)
        await made.until("/v1/traffic/pods", lambda answer: len(answer["items"]) == 2)
        yield made
    app.stop()
    assert await running == 0
    await flowctl.stop()


async def test_everything_is_shown(world: World) -> None:
    """Traffic of Pods and nodes, topology and readiness, from streams and two switches."""
    assert (await world.get("/readyz"))["status"] == "ok"
    pods = (await world.get("/v1/traffic/pods?namespace=default"))["items"]
    assert [(p["name"], p["receive_bytes"], p["transmit_bytes"]) for p in pods] == [
        ("p11", 5000, 3000),
        ("p21", 100, 200),
    ]
    assert (await world.get("/v1/traffic/pods?namespace=other"))["items"] == []
    nodes = (await world.get("/v1/traffic/nodes"))["items"]
    assert [(n["source"], n["destination"], n["bytes"]) for n in nodes] == [
        ("n1", "n2", 4000),
        ("n2", "n1", 50),
    ]
    topology = await world.get("/v1/topology")
    assert [node["name"] for node in topology["nodes"]] == ["n1", "n2"]
    assert world.flowctl.tokens == {"Bearer secret"}
    samples = await world.samples()
    assert (
        'dunlin_pod_receive_bytes_total{namespace="default",node="n1",pod="p11"} 5000.0' in samples
    )
    assert 'dunlin_metrics_polls_total{result="ok"}' in samples
    assert "http_500" not in samples, "a switch was asked of a flowctl that has no session with it"


async def test_flowctl_restarts_and_switch_is_programmed_anew(world: World) -> None:
    """A flowctl that is away costs nothing; flows installed anew count on."""
    await world.flowctl.stop()
    async with asyncio.timeout(DEADLINE_S):
        while 'dunlin_metrics_polls_total{result="connection"}' not in await world.samples():
            await asyncio.sleep(0.02)
    assert (await world.get("/readyz"))["status"] == "ok"
    assert len((await world.get("/v1/traffic/pods"))["items"]) == 2
    world.flowctl.counters["n1"] = switch("n1", pods={"p11": (5500, 3000)}, routes={"n2": 10})
    await world.flowctl.start()
    await world.until("/v1/traffic/nodes", lambda answer: answer["items"][0]["bytes"] == 4010)
    pods = (await world.get("/v1/traffic/pods"))["items"]
    assert pods[0]["receive_bytes"] == 5500


async def test_spread_of_a_service(world: World) -> None:
    """Measured shares of a Service, from the first reading of its group on."""
    world.flowctl.counters["n1"] = switch("n1", endpoints=[(E1, 0), (E2, 0), (E2, 0)])
    await world.polled()
    world.flowctl.counters["n1"] = switch("n1", endpoints=[(E1, 6), (E2, 1), (E2, 1)])
    answer = await world.until(
        "/v1/services", lambda found: found["items"][0]["endpoints"][0]["recent_connections"]
    )
    (service,) = answer["items"]
    assert [e["share"] for e in service["endpoints"]] == [0.75, 0.25]
    assert 'kind="measured"' in await world.samples()


async def test_programming_latency(world: World) -> None:
    """An acknowledgement becomes one observation."""
    message = applied("n1", 2, programming_ms=40.0)
    await world.bus.publish(Message(message.subject, wire.encode(message)))
    async with asyncio.timeout(DEADLINE_S):
        while "dunlin_programming_latency_seconds_count 1.0" not in await world.samples():
            await asyncio.sleep(0.02)
    assert 'dunlin_switch_programming_latency_seconds{node="n1"} 0.04' in await world.samples()


async def test_bad_answers_of_flowctl(world: World) -> None:
    """Garbage and refusals are counted by reason; everything else goes on."""
    world.flowctl.refusing = True
    async with asyncio.timeout(DEADLINE_S):
        while 'dunlin_metrics_polls_total{result="http_503"}' not in await world.samples():
            await asyncio.sleep(0.02)
    world.flowctl.refusing, world.flowctl.garbage = False, True
    async with asyncio.timeout(DEADLINE_S):
        while 'kind="counters",reason="garbage"' not in await world.samples():
            await asyncio.sleep(0.02)
    world.flowctl.garbage = False
    world.flowctl.counters["n2"] = switch("n2", pods={"p21": (900, 200)})
    await world.until("/v1/traffic/pods", lambda found: found["items"][1]["receive_bytes"] == 900)


async def test_bad_record(world: World) -> None:
    """A message that does not parse is counted and changes nothing."""
    await world.bus.publish(Message("dunlin.v1.fact.node._.n1", b"{nonsense"))
    async with asyncio.timeout(DEADLINE_S):
        while 'kind="fact",reason="record"' not in await world.samples():
            await asyncio.sleep(0.02)
    assert (await world.get("/v1/topology"))["nodes"][0]["ready"]


async def test_page(world: World) -> None:
    """The page loads nothing from anywhere, and says so to the browser."""
    answer = await world.http.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    text = answer.text.replace("http://www.w3.org/2000/svg", "")
    for outside in ("http://", "https://", "src=", "@import", "url("):
        assert outside not in text
    assert "innerHTML" not in text
