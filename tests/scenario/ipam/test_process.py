"""The real processes of ipam and planner: settings, REST, metrics, a clean stop."""

import asyncio
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from dunlin import wire
from dunlin.bus.base import Message
from dunlin.bus.nats import NatsBus
from dunlin.bus.nats_client import Options
from dunlin.events.facts import SyncFact
from dunlin.events.rpc import Allocated
from tests.fixtures.nats import Given
from tests.fixtures.worlds import clean, need_unused
from tests.scenario.ipam.replicas import insist
from tests.unit.ipam.build import attachment, node, pod, request, switch
from tests.unit.planner.build import endpoint, service, slice_of

pytestmark = pytest.mark.nats


class Process:
    """A service process and where it listens."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.url = ""
        self.lines: list[str] = []

    async def read(self) -> None:
        """Keep its log; the line "listening" has the URL."""
        assert self.process.stdout is not None
        async for raw in self.process.stdout:
            self.lines.append(raw.decode(errors="replace"))
            found = re.search(r"http://127\.0\.0\.1:\d+", self.lines[-1])
            if found and not self.url:
                self.url = found.group()

    def get(self, path: str) -> tuple[int, Any]:
        """Status and decoded body."""
        try:
            with urllib.request.urlopen(self.url + path, timeout=10) as reply:  # noqa: S310 - http
                body = reply.read().decode()
                return reply.status, json.loads(body) if body[:1] in "{[" else body
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())
        except urllib.error.URLError as error:
            return 0, str(error)

    async def ready(self) -> None:
        """Wait for /readyz."""
        async with asyncio.timeout(60):
            while not self.url or (await asyncio.to_thread(self.get, "/readyz"))[0] != 200:
                assert self.process.returncode is None, "".join(self.lines)
                await asyncio.sleep(0.05)


@asynccontextmanager
async def started(module: str, url: str) -> AsyncIterator[Process]:
    """`python -m <module>`; it must end with 0 on SIGTERM."""
    environ = {**os.environ, "NATS_URL": url, "DUNLIN_REPLICA": f"{module}-0"}
    process = Process(
        await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            module,
            env=environ,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
    )
    reading = asyncio.create_task(process.read())
    try:
        yield process
        process.process.terminate()
        assert await asyncio.wait_for(process.process.wait(), 20) == 0, "".join(process.lines)
    finally:
        if process.process.returncode is None:
            process.process.kill()
            await process.process.wait()
        await reading


async def published(planner: Process, path: str) -> Any:
    """
    The intents at `path` once there are some and all of them stand in the stream.

    How many facts ipam has written, or whose turn it is at a shard, is no level to wait for.
    """
    async with asyncio.timeout(30):
        while True:
            _, found = await asyncio.to_thread(planner.get, path)
            if found["items"] and all(item["revision"] > 0 for item in found["items"]):
                return found
            await asyncio.sleep(0.02)


AFFINITY_TIMEOUT = "spec.sessionAffinityConfig.clientIP.timeoutSeconds"
"""Beyond what a learned flow can count (16 bits of seconds): reported."""


async def test_processes(world_nats: Any) -> None:
    """Facts in by NATS; addresses, intents, reports and metrics out by REST."""
    server, bus = world_nats
    async with (
        started("dunlin_ipam", server.url) as ipam,
        started("dunlin_planner", server.url) as planner,
    ):
        for fact in (
            node("n1", "10.244.1.0/24"),
            switch("n1", "10.244.1.1"),
            pod("web"),
            service("web", affinity_timeout_s=86_400),
            slice_of("web", endpoint("10.244.1.2")),
            SyncFact(name="watcher"),
        ):
            await bus.publish(Message(fact.subject, wire.encode(fact)))
        await ipam.ready()
        answer = await insist(bus, "allocate", request())
        assert isinstance(answer, Allocated)
        stands = attachment("web", "10.244.1.2")
        await bus.publish(Message(stands.subject, wire.encode(stands)))
        await planner.ready()
        get = asyncio.to_thread
        found = await published(planner, "/v1/intents?kind=service&object=default/web")
        assert [item["id"] for item in found["items"]] == ["all/service/default/web:http/TCP"]
        status, one = await get(planner.get, "/v1/intents/all/service/default/web:http/TCP")
        assert (status, one) == (200, found["items"][0])
        assert (await get(planner.get, "/v1/intents/all/service/x"))[0] == 404
        assert (await get(planner.get, "/v1/facts/pod"))[1]["total"] == 1
        assert (await get(planner.get, "/v1/facts/node/_/n1"))[1]["name"] == "n1"
        assert "nonsense" in (await get(planner.get, "/v1/facts/nonsense"))[1]["error"]
        assert (await get(planner.get, "/v1/intents?limit=0"))[0] in (400, 422)
        report = (await get(planner.get, "/v1/report"))[1]
        assert [item["field"] for item in report["items"]] == [AFFINITY_TIMEOUT]
        _, text = await get(planner.get, "/metrics")
        assert f'dunlin_unsupported_total{{field="{AFFINITY_TIMEOUT}",kind="Service"}} 1.0' in text
        (block,) = (await get(ipam.get, "/v1/ipam/blocks?node=n1"))[1]["items"]
        assert (block["cidr"], block["allocated"], block["free"]) == ("10.244.1.0/24", 1, 252)
        (pool,) = (await get(ipam.get, "/v1/ipam/pools"))[1]["items"]
        assert (pool["blocks"], pool["allocated"]) == (1, 1)
        lines = (await get(ipam.get, "/v1/ipam/addresses?pod=default/web"))[1]["items"]
        assert [(line["ip"], line["owner"]) for line in lines] == [("10.244.1.2", "c-web/eth0")]
        assert (await get(ipam.get, "/v1/ipam/violations"))[1] == {"items": []}
        _, text = await get(ipam.get, "/metrics")
        assert 'dunlin_ipam_block_addresses{block="10.244.1.0/24",node="n1",state="free"}' in text


@pytest.fixture
async def world_nats(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """A nats-server with fresh streams, and a connection."""
    server = request.getfixturevalue("nats_server")
    bus = await NatsBus.connect(Options((server.url,)), wait_s=10)
    if isinstance(server, Given):
        await need_unused(bus)
    await bus.ensure_streams()
    yield server, bus
    if isinstance(server, Given):
        await clean(bus)
    await bus.close()
