"""
The fact stream as typed events, for services that turn facts into intents.

A fact that does not parse is named, counted, and replaced by the newest good one of the same object
that the log still has: what a reader knows is a function of the log, before and after a restart.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Bus, Record
from dunlin.events.facts import Fact

log = structlog.get_logger(__name__)

CHUNK = 512
"""Records handed out before the event loop gets its turn."""

PREFIX = f"{subjects.PREFIX}.fact."


@dataclass(frozen=True, slots=True)
class Read:
    """
    One object: its newest state, or None where it is gone.

    `time_ms`: Unix, stored by the server.
    """

    kind: str
    namespace: str
    name: str
    fact: Any
    seq: int
    time_ms: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """
    What was read, in order; `seq`: the stream is read up to here, kinds that nobody asked for too.

    `reset`: forget everything first. `caught_up`: nothing newer was there.
    """

    reads: tuple[Read, ...]
    epoch: str
    seq: int
    reset: bool
    caught_up: bool


class BadFactError(Exception):
    """A message that is no fact of its subject; the text names the field."""


class FactReader:
    """
    Reads all facts, decodes those of `kinds`.

    `bad`: subject -> reason, of objects whose newest fact is bad. `on_bad(kind, reason)` counts.
    """

    def __init__(
        self,
        bus: Bus,
        kinds: Mapping[str, type[Fact]],
        on_bad: Callable[[str, str], None],
    ) -> None:
        self._bus = bus
        self._kinds = kinds
        self._on_bad = on_bad
        self.bad: dict[str, str] = {}

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        """For ever; between two chunks the event loop has had its turn."""
        async with aclosing(self._bus.follow(subjects.FACTS_STREAM)) as batches:
            async for batch in batches:
                if batch.reset:
                    self.bad.clear()
                records = batch.records
                for start in range(0, max(1, len(records)), CHUNK):
                    part = records[start : start + CHUNK]
                    last = start + CHUNK >= len(records)
                    yield Chunk(
                        reads=tuple([read for r in part if (read := await self.read(r))]),
                        epoch=batch.epoch,
                        seq=batch.seq if last else part[-1].seq,
                        reset=batch.reset and start == 0,
                        caught_up=batch.caught_up and last,
                    )
                    await asyncio.sleep(0)

    async def read(self, record: Record) -> Read | None:
        """
        One record.

        None for kinds that nobody asked for and objects that never had a good fact.
        """
        kind = record.subject[len(PREFIX) :].partition(".")[0]
        if kind not in self._kinds:
            return None
        try:
            found = self._parse(kind, record)
        except BadFactError as error:
            return await self._last_good(kind, record, str(error))
        self.bad.pop(record.subject, None)
        return found

    def _parse(self, kind: str, record: Record) -> Read:
        tokens = subjects.split(record.subject)
        if len(tokens) != 4:
            raise BadFactError("the subject is not fact.<kind>.<namespace>.<name>")
        _, _, namespace, name = tokens
        fact = None
        if not record.is_tombstone:
            try:
                fact = wire.decode(record.data, self._kinds[kind])
            except (msgspec.DecodeError, ValueError) as error:
                raise BadFactError(str(error)) from error
            own = str(getattr(fact, "cidr", None) or getattr(fact, "ip", None) or fact.name)
            if (fact.namespace, fact.name) != (namespace, name) or own != name:
                raise BadFactError(f"$.name: {fact.namespace}/{fact.name} is not the subject's")
        return Read(kind, namespace, name, fact, record.seq, record.time_ms)

    async def _last_good(self, kind: str, record: Record, reason: str) -> Read | None:
        name = "/".join(subjects.split(record.subject)[2:])
        log.error("bad fact", kind=kind, object=name, seq=record.seq, reason=reason)
        self._on_bad(kind, "parse")
        self.bad[record.subject] = reason
        good: Read | None = None
        async with aclosing(
            self._bus.follow(subjects.FACTS_STREAM, [record.subject], history=True)
        ) as batches:
            async for batch in batches:
                for older in batch.records:
                    try:
                        good = self._parse(kind, older) if older.seq <= record.seq else good
                    except BadFactError:
                        continue
                if batch.caught_up:
                    break
        if good is None:
            return None
        return Read(kind, good.namespace, good.name, good.fact, record.seq, record.time_ms)
