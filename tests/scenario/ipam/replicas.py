"""Replicas of ipam in this process, that may be killed between any two writes."""

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

from dunlin import subjects, wire
from dunlin.bus import leases
from dunlin.bus.base import Bus, BusError, Message
from dunlin.bus.memory import MemoryBus
from dunlin.events.rpc import Allocated, Blocks, Failure, Released
from dunlin.service.metrics import Metrics
from dunlin.service.shards import ShardLeases
from dunlin_ipam.config import IpamSettings
from dunlin_ipam.observer import Observer
from dunlin_ipam.server import Server
from dunlin_ipam.shell import SHARD_COUNT, Shell
from tests.fixtures.worlds import World
from tests.unit.ipam.build import RULES

SETTINGS = IpamSettings(
    replica="i1",
    pod_cidrs=RULES.pools,
    service_cidrs=RULES.service_cidrs,
    lease_ttl_s=1.0,
    orphan_grace_s=60.0,
    carve_grace_s=0.0,
)


class CrashingBus:
    """A bus whose process dies at some writes, before or after they are stored."""

    def __init__(self, bus: Bus, dies: Callable[[], bool]) -> None:
        self._bus = bus
        self._dies = dies
        self.dead = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bus, name)

    async def _maybe_die(self) -> None:
        if self.dead.is_set() or self._dies():
            self.dead.set()
            # A dead process does nothing more; its tasks are cancelled from outside.
            await asyncio.Event().wait()

    async def publish(self, message: Message) -> int:
        """One write, between two chances to die."""
        await self._maybe_die()
        seq = await self._bus.publish(message)
        await self._maybe_die()
        return seq

    async def publish_many(self, messages: Sequence[Message]) -> list[int | BusError]:
        """The same for each of several."""
        results: list[int | BusError] = []
        for message in messages:
            await self._maybe_die()
            results.extend(await self._bus.publish_many([message]))
            await self._maybe_die()
        return results


@dataclass
class Replica:
    """A running replica."""

    shell: Shell
    bus: CrashingBus


@asynccontextmanager
async def replica(
    world: World, dies: Callable[[], bool] = lambda: False, **changes: Any
) -> AsyncIterator[Replica]:
    """Until the context ends; then it stops without giving anything back if it has died."""
    settings = replace(SETTINGS, **changes)
    real = await world.bus()
    await real.ensure_streams()
    bus: Any = CrashingBus(real, dies)
    metrics = Metrics("ipam", "test")
    observer = Observer(metrics.registry)
    shards = ShardLeases(
        leases(real), "ipam", settings.replica, SHARD_COUNT, ttl_s=settings.lease_ttl_s
    )
    shell = Shell(bus, shards, settings, metrics, observer)
    shards.on_change = shell.nudge.set
    server = Server(
        bus,
        shell.view,
        shell.locks,
        metrics,
        observer,
        agents_grace_ms=round(settings.carve_grace_s * 1000),
    )
    work = (shell.writer.follow(), shell.read(), shell.work(), shards.run(), shell.claims.follow())
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    await server.start()
    try:
        yield Replica(shell, bus)
    finally:
        await server.stop()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        if not isinstance(real, MemoryBus):
            await real.close()
        for task in tasks:
            assert task.cancelled(), task.exception()


async def reborn(
    world: World, name: str, seed: int, chance: float, until: asyncio.Event, **changes: Any
) -> int:
    """
    A replica that dies at random and is started again, each life under a new name.

    Returns its deaths.
    """
    rng = random.Random(seed)  # noqa: S311 - repeatable
    deaths = 0
    while not until.is_set():
        life = f"{name}-{deaths}"
        async with replica(
            world, lambda: not until.is_set() and rng.random() < chance, replica=life, **changes
        ) as running:
            waits = [asyncio.create_task(e.wait()) for e in (running.bus.dead, until)]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
            deaths += running.bus.dead.is_set()
    return deaths


async def ask(bus: Bus, operation: str, request: Any, *, timeout_s: float = 2.0) -> Any:
    """One request; the decoded reply."""
    data = await bus.request(
        subjects.rpc("ipam", operation), wire.encode(request), timeout_s=timeout_s
    )
    return wire.decode(data, Allocated | Released | Blocks | Failure)  # type: ignore[arg-type]


async def insist(
    bus: Bus, operation: str, request: Any, *, timeout_s: float = 2.0, attempts: int = 400
) -> Any:
    """Ask again, each time with more patience, until there is an answer that is no `retry`."""
    reply: Any = None
    for _ in range(attempts):
        with contextlib.suppress(BusError):
            reply = await ask(bus, operation, request, timeout_s=timeout_s)
            if not isinstance(reply, Failure) or not reply.retry:
                return reply
        timeout_s = min(2.0, timeout_s * 1.5)
        await asyncio.sleep(0.01)
    raise AssertionError(f"no answer to {request}: {reply}")
