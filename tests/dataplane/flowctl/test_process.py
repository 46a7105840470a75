"""The process on real NATS and Open vSwitch: SIGTERM, kill -9, a lost store."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from dunlin import bus as buses
from dunlin import wire
from dunlin.bus.base import Bus, BusUnavailable, Message
from dunlin.bus.nats_server import NatsServer
from dunlin.service.settings import CommonSettings
from dunlin_lab.catalogue import free_port
from tests.dataplane.flowctl.ovs import Ovs
from tests.dataplane.flowctl.real_intents import everything, service
from tests.fixtures.nats import Given
from tests.unit.flowctl.harness import Cluster

pytestmark = [pytest.mark.ovs, pytest.mark.nats]


class Process:
    """`python -m dunlin_flowctl`, always on the same ports."""

    def __init__(self, nats_url: str, directory: Path) -> None:
        self.port, self.api_port = (free_port("127.0.0.1") for _ in range(2))
        self._log = (directory / "flowctl.log").open("ab")
        self._env = {
            **os.environ,
            "NATS_URL": nats_url,
            "DUNLIN_REPLICA": "flowctl-0",
            "DUNLIN_API_PORT": str(self.api_port),
            "DUNLIN_OPENFLOW_LISTEN": f"tcp:127.0.0.1:{self.port}",
            "DUNLIN_LEASE_TTL_S": "2",
        }
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Run it."""
        command = [sys.executable, "-W", "ignore", "-m", "dunlin_flowctl"]
        self._process = subprocess.Popen(command, env=self._env, stderr=self._log)

    def end(self, number: int) -> int:
        """Send a signal and wait; its exit code."""
        assert self._process is not None
        self._process.send_signal(number)
        code = self._process.wait(10)
        self._process = None
        return code

    def close(self) -> None:
        """End it, if it still runs."""
        if self._process is not None:
            self.end(signal.SIGKILL)
        self._log.close()

    async def in_force(self, revision: int) -> None:
        """Wait until the switch of n1 holds `revision`."""

        async def holds(client: httpx.AsyncClient) -> bool:
            try:
                answer = await client.get(f"http://127.0.0.1:{self.api_port}/v1/switches")
            except httpx.HTTPError:
                return False
            items = answer.json().get("items", ()) if answer.is_success else ()
            return any(item["revision"] >= revision for item in items)

        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(30):
            while not await holds(client):
                await asyncio.sleep(0.05)


class NatsCluster(Cluster):
    """What the other services publish, on a real server."""

    def __init__(self, bus: Bus) -> None:
        super().__init__()
        self.bus = bus  # type: ignore[assignment]


@pytest.fixture
async def cluster(nats_server: NatsServer | Given) -> AsyncIterator[NatsCluster]:
    """The streams, empty."""
    if isinstance(nats_server, Given):
        pytest.skip("needs a nats-server of its own: NATS_URL names one that others may use")
    bus = await buses.connect(CommonSettings(nats_url=nats_server.url), wait_s=10)
    await bus.ensure_streams()
    yield NatsCluster(bus)
    await bus.close()


@pytest.fixture
async def process(
    nats_server: NatsServer | Given, tmp_path: Path, ovs: Ovs
) -> AsyncIterator[Process]:
    """flowctl, not started; node n1's bridge tries to connect to it."""
    process = Process(nats_server.url, tmp_path)
    await asyncio.to_thread(ovs.bridge, "br-n1", 0x11, f"tcp:127.0.0.1:{process.port}")
    yield process
    process.close()


async def streams_again(bus: Bus) -> None:
    """Make the streams on a server that has just come back."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await bus.ensure_streams()
            except BusUnavailable:
                await asyncio.sleep(0.1)


async def dump(ovs: Ovs) -> tuple[list[str], list[str]]:
    """Flows and groups."""
    return await asyncio.to_thread(ovs.flows, "br-n1"), await asyncio.to_thread(ovs.groups, "br-n1")


async def test_killed_and_started_again(ovs: Ovs, process: Process, cluster: NatsCluster) -> None:
    """After kill -9 and after SIGTERM flows stay, and changes made meanwhile are applied after."""
    seq = await cluster.intend(*everything())
    await cluster.claim()
    process.start()
    await process.in_force(seq)
    before = await dump(ovs)
    assert len(before[0]) > 100
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    assert await dump(ovs) == before
    process.start()
    seq = await cluster.intend(service(4, 11))
    await process.in_force(seq)
    seq = await cluster.intend(service(4, 10))
    await process.in_force(seq)
    assert await dump(ovs) == before
    assert process.end(signal.SIGTERM) == 0
    assert await dump(ovs) == before


async def test_a_lost_store_changes_nothing(
    ovs: Ovs, process: Process, cluster: NatsCluster, nats_server: NatsServer
) -> None:
    """JetStream's data is erased under a running flowctl; published again, the same flows stand."""
    seq = await cluster.intend(*everything())
    await cluster.claim()
    process.start()
    await process.in_force(seq)
    before = await dump(ovs)
    nats_server.stop()
    nats_server.erase()
    nats_server.start()
    await streams_again(cluster.bus)
    for intent in everything():
        await cluster.bus.publish(Message(intent.subject, wire.encode(intent)))
    await cluster.claim()
    seq = await cluster.intend(service(4, 11))
    async with asyncio.timeout(40):
        while await dump(ovs) == before:
            await asyncio.sleep(0.1)
    seq = await cluster.intend(service(4, 10))
    await process.in_force(seq)
    assert await dump(ovs) == before
