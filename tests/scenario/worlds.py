"""What scenarios of services that turn facts into intents do and see on a bus."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, Generic, TypeVar

from dunlin import subjects, wire
from dunlin.bus.base import Bus, Message
from dunlin.events.facts import Fact
from dunlin.events.state import Progress

T = TypeVar("T")


async def until(holds: Callable[[], object], what: str = "", *, timeout_s: float = 15.0) -> None:
    """Wait for a level, looked at every few milliseconds, with a deadline."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, f"not within {timeout_s} s: {what or holds}"
        await asyncio.sleep(0.005)


async def tell(bus: Bus, *facts: Fact) -> int:
    """Publish facts; the sequence of the last."""
    seq = 0
    for fact in facts:
        seq = await bus.publish(Message(fact.subject, wire.encode(fact)))
    return seq


async def forget(bus: Bus, fact: Fact) -> int:
    """Publish a tombstone."""
    return await bus.publish(Message(fact.subject, b""))


@asynccontextmanager
async def meanwhile(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """These run until the context ends; one that failed fails the test."""
    tasks = [asyncio.create_task(coroutine) for coroutine in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            assert task.cancelled(), task.exception()


class Reader(Generic[T]):
    """
    What stands in the intent and state streams.

    `kind`: what intents are read as. `service`: whose claims. `skip`: data that is left out.
    """

    def __init__(self, kind: Any, service: str, shard_count: int, skip: bytes = b"") -> None:
        self.intents: dict[str, T] = {}
        self.writes = 0
        self.resets = 0
        self.progress: dict[str, Progress] = {}
        self._kind = kind
        self._service = service
        self._shard_count = shard_count
        self._skip = skip

    async def read_intents(self, bus: Bus) -> None:
        """Follow the intents."""
        async for batch in bus.follow(subjects.INTENTS_STREAM, history=True):
            if batch.reset:
                self.intents.clear()
            for record in batch.records:
                self.writes += 1
                self.intents.pop(record.subject, None)
                if not record.is_tombstone and record.data != self._skip:
                    self.intents[record.subject] = wire.decode(record.data, self._kind)

    async def read_progress(self, bus: Bus) -> None:
        """Follow the claims."""
        async for batch in bus.follow(subjects.STATE_STREAM):
            if batch.reset:
                self.progress.clear()
                self.resets += 1
            for record in batch.records:
                claim = wire.decode(record.data, Progress)
                if claim.service == self._service:
                    self.progress[claim.replica] = claim

    def claims(self, seq: int) -> bool:
        """Every shard is claimed up to this fact."""
        shards = {s for c in self.progress.values() if c.fact_seq >= seq for s in c.shards}
        return len(shards) == self._shard_count
