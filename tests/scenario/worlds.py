"""Buses for scenarios of whole services: in memory, and on a real nats-server."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from dunlin import subjects
from dunlin.bus import leases as leases_of
from dunlin.bus.base import Bus
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.bus.nats import NatsBus
from dunlin.bus.nats_api import LEASES_STREAM
from dunlin.bus.nats_client import Options
from tests.fixtures.nats import Given
from tests.fixtures.worlds import World


async def _clean(bus: NatsBus, *, only_mine: bool) -> None:
    for name in (*subjects.STREAM_SUBJECTS, LEASES_STREAM):
        if await bus.api.stream_info(name) is not None:
            if only_mine:
                pytest.skip(f"nats tier skipped: NATS_URL has a stream {name} already")
            await bus.api.call(f"STREAM.DELETE.{name}")


def _memory_world() -> World:
    server = MemoryServer()

    async def bus() -> Bus:
        return MemoryBus(server)

    async def delete_stream(name: str) -> None:
        server.delete_stream(name)

    async def outage() -> None:
        server.stop()

    async def back() -> None:
        server.start()

    return World(bus, leases_of, delete_stream, outage, back)


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.nats)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Each scenario runs in both worlds, each time without any stream."""
    if request.param == "memory":
        yield _memory_world()
        return
    server = request.getfixturevalue("nats_server")
    options = Options((server.url,), timeout_s=3.0, heartbeat_s=0.2)
    admin = await NatsBus.connect(options, wait_s=10)
    await _clean(admin, only_mine=isinstance(server, Given))
    opened: list[NatsBus] = [admin]

    async def bus() -> Bus:
        opened.append(await NatsBus.connect(options, wait_s=10))
        return opened[-1]

    async def delete_stream(name: str) -> None:
        await admin.api.call(f"STREAM.DELETE.{name}")

    async def outage() -> None:
        if isinstance(server, Given):
            pytest.skip("a server given by NATS_URL is not ours to stop")
        await asyncio.to_thread(server.kill)

    async def back() -> None:
        await asyncio.to_thread(server.start)

    try:
        yield World(bus, leases_of, delete_stream, outage, back)
    finally:
        if not isinstance(server, Given) and server.process is None:
            await back()
        await _clean(admin, only_mine=False)
        for connection in opened:
            await connection.close()


async def until(holds: Callable[[], object], what: str = "", *, timeout_s: float = 15.0) -> None:
    """Wait for a level, looked at every few milliseconds, with a deadline."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what or holds}"
        await asyncio.sleep(0.005)
