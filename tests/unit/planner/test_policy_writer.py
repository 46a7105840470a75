"""How a change of policy reaches the stream: numbered, committed, then withdrawn."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from dunlin import subjects, wire
from dunlin.bus.base import Record
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.events.intents import (
    AnyIntent,
    PolicyCommitIntent,
    PolicyGenerationIntent,
    PolicyPeerIntent,
)
from dunlin.service.intent_writer import IntentWriter, Role, Watermark
from dunlin_planner.policy_writer import COMMIT_SUBJECT, PolicyWriter
from tests.scenario.policy.test_changes import stream

MARK = Watermark("facts", 7, complete=True)
SHARDS = frozenset({0})


def peer(name: str, class_id: int = 1) -> PolicyPeerIntent:
    """A Pod as a peer."""
    return PolicyPeerIntent(scope="all", key=f"x/{name}", ips=(), class_id=class_id)


def generation(number: int) -> PolicyGenerationIntent:
    """A generation."""
    return PolicyGenerationIntent(scope="all", key="all", generation=number)


class Writer:
    """A planner's writers, and all that was ever published."""

    def __init__(self, bus: MemoryBus) -> None:
        self.bus = bus
        role = Role("planner", "me", 1, lambda _subject: 0, lambda: SHARDS)
        filters = (f"{subjects.PREFIX}.intent.>",)
        self.intents = IntentWriter(bus, filters, role, lambda: None)
        self.policy = PolicyWriter(bus, self.intents)
        self.log: list[Record] = []

    async def follow(self) -> None:
        """For ever."""
        async for batch in self.bus.follow(subjects.INTENTS_STREAM):
            self.log += batch.records

    async def write(self, *wanted: AnyIntent, gone: tuple[AnyIntent, ...] = ()) -> None:
        """One change."""
        changes: dict[str, AnyIntent | None] = {i.subject: i for i in wanted}
        self.policy.want({**changes, **{i.subject: None for i in gone}})
        await self.policy.write(complete=True)
        await self.intents.flush(MARK, SHARDS)

    async def said(self, count: int) -> list[tuple[str, AnyIntent | None]]:
        """The first `count` messages, as subject and intent."""
        async with asyncio.timeout(5.0):
            while len(self.log) < count:
                await asyncio.sleep(0.005)
        assert len(self.log) == count
        return [(r.subject, None if r.is_tombstone else read(r)) for r in self.log]


def read(record: Record) -> AnyIntent:
    """The intent in a message."""
    return wire.decode(record.data, AnyIntent)  # type: ignore[arg-type]


@asynccontextmanager
async def writing(server: MemoryServer) -> AsyncIterator[Writer]:
    """One that knows what stands and has adopted it."""
    bus = MemoryBus(server)
    await bus.ensure_streams()
    writer = Writer(bus)
    tasks = [asyncio.create_task(w) for w in (writer.intents.follow(), writer.follow())]
    try:
        while not writer.intents.caught_up:
            await asyncio.sleep(0.005)
        await writer.policy.adopt()
        yield writer
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await bus.close()


async def test_numbers_then_commit_then_tombstones() -> None:
    """As `stream` of the scenarios has it; a change that changes nothing writes nothing."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"), peer("b"))
        await writer.write(peer("a"), peer("b"))
        await writer.write(peer("c"), generation(2), gone=(peer("b"),))
        first = stream({i.subject: i for i in (peer("a"), peer("b"))}, 1)
        second = stream(
            {
                **{i.subject: i for i in (peer("c"), generation(2))},
                peer("b").subject: None,
            },
            2,
        )
        assert await writer.said(len(first) + len(second)) == [*first, *second]


async def test_who_takes_over_completes_the_change() -> None:
    """A successor finds half a change: it commits under a later number, and names what is stale."""
    server = MemoryServer()
    async with writing(server) as writer:
        await writer.write(peer("a"), peer("stale"))
        writer.policy.want({i.subject: i for i in (peer("b"), peer("c"))})
        await writer.intents.write()
    async with writing(server) as successor:
        await successor.write(peer("a"), peer("b"), peer("c"), peer("d"))
        *_, d, commit, stale = await successor.said(8)
        assert d == (peer("d").subject, PolicyPeerIntent(
            scope="all", key="x/d", ips=(), class_id=1, change=2))  # fmt: skip
        assert commit[0] == COMMIT_SUBJECT
        assert isinstance(commit[1], PolicyCommitIntent)
        assert (commit[1].committed, commit[1].gone) == (2, ("all/policypeer/x/stale",))
        assert stale == (peer("stale").subject, None)


async def test_nothing_is_withdrawn_before_everything_is_known() -> None:
    """Without `complete` what is not desired stays, and no commit names it."""
    async with writing(MemoryServer()) as writer:
        await writer.write(peer("a"), peer("b"))
        writer.policy.want({peer("a").subject: None})
        await writer.policy.write(complete=False)
        await writer.intents.flush(Watermark("facts", 8, complete=False), SHARDS)
        assert len(await writer.said(3)) == 3
        await writer.policy.write(complete=True)
        await writer.intents.flush(MARK, SHARDS)
        *_, commit, tombstone = await writer.said(5)
        assert isinstance(commit[1], PolicyCommitIntent)
        assert commit[1].gone == ("all/policypeer/x/a",)
        assert tombstone == (peer("a").subject, None)
