"""Following a stream: the state, then every change, without a gap or a repetition."""

import asyncio

import pytest

from dunlin import subjects
from dunlin.bus.base import BATCH_MAX, TOMBSTONE, Batch, Bus, BusUnavailable, Message
from tests.fixtures.following import DEADLINE_S, Reader
from tests.fixtures.worlds import World

FACTS = subjects.FACTS_STREAM


def pod(name: str) -> str:
    """A subject."""
    return subjects.fact("pod", "shop", name)


async def test_empty_stream_is_caught_up_at_once(bus: Bus) -> None:
    """The first batch of an empty stream is empty and caught up."""
    reader = Reader(bus.follow(FACTS))
    batch = await reader.caught_up()
    assert batch == Batch((), await bus.epoch(FACTS), 0, caught_up=True)


async def test_state_then_changes(bus: Bus) -> None:
    """The newest record of each subject, tombstones included, by sequence; then each change."""
    for name, data in (("a", b"1"), ("b", b"2"), ("a", b"3"), ("c", b"4"), ("c", TOMBSTONE)):
        await bus.publish(Message(pod(name), data))
    reader = Reader(bus.follow(FACTS))
    batch = await reader.caught_up()
    assert [(r.subject, r.data, r.seq) for r in reader.records] == [
        (pod("b"), b"2", 2),
        (pod("a"), b"3", 3),
        (pod("c"), TOMBSTONE, 5),
    ]
    assert batch.seq == 5
    assert not any(b.reset for b in reader.batches)
    await bus.publish(Message(pod("a"), b"6"))
    await bus.publish(Message(pod("a"), b"7"))
    await reader.until(lambda r: r.batches[-1].seq == 7)
    assert reader.data[3:] == [b"6", b"7"]


async def test_filters(bus: Bus) -> None:
    """Only what some filter names, and filters within others are no trouble."""
    await bus.publish(Message(pod("a"), b"pod"))
    await bus.publish(Message(subjects.fact("node", "", "n"), b"node"))
    await bus.publish(Message(subjects.fact("service", "shop", "s"), b"service"))
    wanted = [subjects.facts_of("pod"), subjects.facts_of("node"), pod("a")]
    reader = Reader(bus.follow(FACTS, wanted))
    await reader.caught_up()
    assert reader.data == [b"pod", b"node"]


async def test_watermark_covers_what_filters_leave_out(bus: Bus) -> None:
    """The sequence of a caught-up reader reaches the end of the stream, at the start and later."""
    await bus.publish(Message(subjects.fact("node", "", "n"), b"1"))
    reader = Reader(bus.follow(FACTS, [subjects.facts_of("pod")]))
    batch = await reader.caught_up()
    assert (batch.records, batch.seq) == ((), 1)
    await bus.publish(Message(pod("a"), b"2"))
    for _ in range(3):
        last = await bus.publish(Message(subjects.fact("node", "", "n"), b"x"))
    batch = await reader.until(lambda r: r.batches[-1].seq >= last and r.batches[-1].caught_up)
    assert reader.data == [b"2"]


async def test_overlapping_filters_are_an_error(bus: Bus) -> None:
    """Filters of which neither covers the other, but which share subjects, are refused."""
    with pytest.raises(ValueError, match="overlap"):
        await anext(bus.follow(FACTS, ["dunlin.v1.fact.*.a.b", "dunlin.v1.fact.pod.*.b"]))


async def test_history(bus: Bus) -> None:
    """With history every stored message comes, in order."""
    for data in (b"1", b"2", b"3"):
        await bus.publish(Message(pod("a"), data))
    reader = Reader(bus.follow(FACTS, history=True))
    await reader.caught_up()
    assert reader.data == [b"1", b"2", b"3"]


async def test_a_slow_reader_takes_bounded_steps(bus: Bus) -> None:
    """Ten thousand records come complete, in order, in batches of at most BATCH_MAX."""
    total = 10_000
    reader = Reader(bus.follow(FACTS))
    await reader.caught_up()
    await bus.publish_many([Message(pod(f"p{i}"), b"x" * 100) for i in range(total)])
    await reader.until(lambda r: r.batches[-1].seq == total)
    assert [record.seq for record in reader.records] == list(range(1, total + 1))
    assert max(len(batch.records) for batch in reader.batches) <= BATCH_MAX
    assert len(reader.batches) < total / 4


async def test_only_the_last_batch_of_the_state_is_caught_up(bus: Bus) -> None:
    """Not before the whole state has been handed out."""
    total = BATCH_MAX + 1000
    await bus.publish_many([Message(pod(f"p{i}"), b"x") for i in range(total)])
    reader = Reader(bus.follow(FACTS))
    await reader.caught_up()
    assert len(reader.records) == total
    assert not any(batch.caught_up for batch in reader.batches[:-1])


async def test_a_deleted_stream_gives_a_reset(bus: Bus, world: World) -> None:
    """Once the stream exists again its state follows a reset, in another epoch."""
    await bus.publish(Message(pod("a"), b"old"))
    reader = Reader(bus.follow(FACTS))
    before = await reader.caught_up()
    await world.delete_stream(FACTS)
    await bus.ensure_streams()
    await bus.publish(Message(pod("b"), b"new"))
    after = await reader.until(lambda r: r.data[-1] == b"new" and r.batches[-1].caught_up)
    resets = [batch for batch in reader.batches if batch.reset]
    assert len(resets) == 1
    assert resets[0].epoch == after.epoch == await bus.epoch(FACTS) != before.epoch
    assert reader.data == [b"old", b"new"]


async def test_a_stream_that_comes_later(world: World) -> None:
    """A follower may start before anybody has made the stream; that is no reset."""
    bus, other = await world.bus(), await world.bus()
    reader = Reader(bus.follow(FACTS))
    waiting = asyncio.create_task(reader.until(lambda r: bool(r.data)))
    await other.ensure_streams()
    await other.publish(Message(pod("a"), b"1"))
    assert (await waiting).reset is False
    assert reader.data == [b"1"]


async def test_an_outage_loses_and_repeats_nothing(bus: Bus, world: World) -> None:
    """After a server's death and return a follower goes on where it was, in the same epoch."""
    await bus.publish_many([Message(pod(f"p{i}"), b"%d" % i) for i in range(10)])
    reader = Reader(bus.follow(FACTS))
    epoch = (await reader.caught_up()).epoch
    await world.outage()
    with pytest.raises(BusUnavailable):
        await bus.publish(Message(pod("lost"), b"x", msg_id="lost"))
    assert not bus.connected
    await world.back()
    late = await world.bus()
    await late.publish_many([Message(pod(f"p{i}"), b"later %d" % i) for i in range(5)])
    last = await late.last_seq(FACTS)
    batch = await reader.until(lambda r: r.batches[-1].seq >= last)
    assert batch.epoch == epoch == await bus.epoch(FACTS)
    assert not any(b.reset for b in reader.batches)
    sequences = [record.seq for record in reader.records]
    assert sequences == sorted(set(sequences))
    assert [data for data in reader.data if data != b"x"] == [
        *(b"%d" % i for i in range(10)),
        *(b"later %d" % i for i in range(5)),
    ]


async def test_a_closed_bus_ends_its_followers(bus: Bus) -> None:
    """A follower of a bus that has been closed raises instead of waiting for ever."""
    reader = Reader(bus.follow(FACTS))
    await reader.caught_up()
    waiting = asyncio.ensure_future(anext(reader.generator))
    await asyncio.sleep(0)
    await bus.close()
    await bus.close()
    with pytest.raises((BusUnavailable, StopAsyncIteration)):
        await asyncio.wait_for(waiting, DEADLINE_S)
