"""Both buses: memory, and nats-server from the wheel (or the one that NATS_URL names)."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from dunlin import subjects
from dunlin.bus.base import Bus, Leases
from dunlin.bus.memory import MemoryBus, MemoryLeases, MemoryServer
from dunlin.bus.nats import NatsBus
from dunlin.bus.nats_api import LEASES_STREAM
from dunlin.bus.nats_client import Options
from dunlin.bus.nats_leases import NatsLeases
from tests.fixtures.nats import Given
from tests.fixtures.worlds import World


async def clean(bus: NatsBus) -> None:
    """Delete Dunlin's streams."""
    for name in (*subjects.STREAM_SUBJECTS, LEASES_STREAM):
        if await bus.api.stream_info(name) is not None:
            # Purged first: see the fixture nats_server.
            await bus.api.call(f"STREAM.PURGE.{name}")
            await bus.api.call(f"STREAM.DELETE.{name}")


async def need_unused(bus: NatsBus) -> None:
    """A server in use is not ours to clean."""
    for name in (*subjects.STREAM_SUBJECTS, LEASES_STREAM):
        if await bus.api.stream_info(name) is not None:
            pytest.skip(f"nats tier skipped: NATS_URL has a stream {name} already")


def memory_world() -> World:
    """A world without a server process."""
    server = MemoryServer()

    async def bus() -> Bus:
        return MemoryBus(server)

    async def delete_stream(name: str) -> None:
        server.delete_stream(name)

    async def outage() -> None:
        server.stop()

    async def back() -> None:
        server.start()

    return World(bus, lambda _bus: MemoryLeases(server), delete_stream, outage, back)


@pytest.fixture(params=["memory", pytest.param("nats", marks=pytest.mark.nats)])
async def world(request: pytest.FixtureRequest) -> AsyncIterator[World]:
    """Each test runs in both worlds, each time without any stream."""
    if request.param == "memory":
        yield memory_world()
        return
    server = request.getfixturevalue("nats_server")
    options = Options((server.url,), timeout_s=3.0, heartbeat_s=0.2)
    admin = await NatsBus.connect(options, wait_s=10)
    if isinstance(server, Given):
        await need_unused(admin)
    opened: list[NatsBus] = [admin]

    async def bus() -> Bus:
        opened.append(await NatsBus.connect(options, wait_s=10))
        return opened[-1]

    async def delete_stream(name: str) -> None:
        await admin.api.call(f"STREAM.PURGE.{name}")
        await admin.api.call(f"STREAM.DELETE.{name}")

    async def outage() -> None:
        if isinstance(server, Given):
            pytest.skip("a server given by NATS_URL is not ours to stop")
        await asyncio.to_thread(server.kill)

    async def back() -> None:
        await asyncio.to_thread(server.start)

    def leases(bus: Bus) -> Leases:
        assert isinstance(bus, NatsBus)
        return NatsLeases(bus)

    try:
        yield World(bus, leases, delete_stream, outage, back)
    finally:
        for connection in reversed(opened):
            if connection is admin and isinstance(server, Given):
                await clean(admin)
            await connection.close()


@pytest.fixture
async def bus(world: World) -> Bus:
    """A connection with its streams made."""
    connection = await world.bus()
    await connection.ensure_streams()
    return connection
