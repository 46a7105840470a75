"""Publishing, compare-and-set, duplicates, tombstones and purges: the same on every bus."""

import pytest

from dunlin import subjects
from dunlin.bus.base import (
    TOMBSTONE,
    Bus,
    BusUnavailable,
    Message,
    WrongLastSequence,
)

POD = subjects.fact("pod", "shop", "web-1")


async def test_sequences_count_from_one(bus: Bus) -> None:
    """A new stream is empty, and its messages are numbered 1, 2, ..."""
    assert await bus.last_seq(subjects.FACTS_STREAM) == 0
    assert await bus.publish(Message(POD, b"one")) == 1
    assert await bus.publish(Message(POD, b"two")) == 2
    assert await bus.last_seq(subjects.FACTS_STREAM) == 2


async def test_newest_message_of_a_subject(bus: Bus) -> None:
    """The newest message is found, also when it is a tombstone; a new subject has none."""
    assert await bus.get_last(POD) is None
    await bus.publish(Message(POD, b"one"))
    seq = await bus.publish(Message(POD, b"two"))
    record = await bus.get_last(POD)
    assert record is not None
    assert (record.subject, record.data, record.seq) == (POD, b"two", seq)
    assert record.time_ms > 1_600_000_000_000
    await bus.publish(Message(POD, TOMBSTONE))
    gone = await bus.get_last(POD)
    assert gone is not None
    assert gone.is_tombstone


async def test_same_msg_id_is_stored_once(bus: Bus) -> None:
    """A message that is sent again under its msg_id gives the sequence of the first copy."""
    first = await bus.publish(Message(POD, b"one", msg_id="a"))
    await bus.publish(Message(POD, b"two", msg_id="b"))
    assert await bus.publish(Message(POD, b"one", msg_id="a")) == first
    assert await bus.last_seq(subjects.FACTS_STREAM) == first + 1


async def test_compare_and_set(bus: Bus) -> None:
    """A write with an outdated expectation is refused; other subjects do not matter."""
    address = subjects.fact("address", "", "10.0.0.2")
    first = await bus.publish(Message(address, b"mine", expected_seq=0))
    await bus.publish(Message(POD, b"other"))
    with pytest.raises(WrongLastSequence) as caught:
        await bus.publish(Message(address, b"yours", expected_seq=0))
    assert (caught.value.subject, caught.value.expected) == (address, 0)
    assert caught.value.actual in (first, None)
    assert await bus.publish(Message(address, b"next", expected_seq=first)) == first + 2


async def test_lost_acknowledgement_of_compare_and_set(bus: Bus) -> None:
    """The same compare-and-set sent twice under one msg_id succeeds twice."""
    message = Message(POD, b"one", msg_id="x", expected_seq=0)
    assert await bus.publish(message) == await bus.publish(message)


async def test_publish_many_keeps_order_and_goes_on_after_a_failure(bus: Bus) -> None:
    """One result a message; the one that fails does not stop the others."""
    messages = [Message(subjects.fact("pod", "shop", f"p{i}"), b"%d" % i) for i in range(3000)]
    messages[1500] = Message(POD, b"no", expected_seq=77)
    results = await bus.publish_many(messages)
    assert isinstance(results[1500], WrongLastSequence)
    good = [result for result in results if isinstance(result, int)]
    assert good == list(range(1, 3000))
    assert await bus.publish_many([]) == []


async def test_history_is_bounded(bus: Bus) -> None:
    """A stream keeps a bounded number of messages of each subject, the newest ones."""
    for i in range(40):
        await bus.publish(Message(POD, b"%d" % i))
    async for batch in bus.follow(subjects.FACTS_STREAM, history=True):
        assert [record.data for record in batch.records] == [b"%d" % i for i in range(24, 40)]
        break


async def test_purge_forgets_a_subject(bus: Bus) -> None:
    """After a purge there is no message, and compare-and-set starts from 0."""
    await bus.publish(Message(POD, b"one"))
    await bus.publish(Message(POD, TOMBSTONE))
    await bus.purge(subjects.FACTS_STREAM, POD)
    assert await bus.get_last(POD) is None
    await bus.publish(Message(POD, b"again", expected_seq=0))


async def test_purge_spares_what_is_newer(bus: Bus) -> None:
    """A purge up to a sequence leaves a message that came after it."""
    seq = await bus.publish(Message(POD, TOMBSTONE))
    await bus.publish(Message(POD, b"back"))
    await bus.purge(subjects.FACTS_STREAM, POD, up_to_seq=seq)
    record = await bus.get_last(POD)
    assert record is not None
    assert record.data == b"back"


async def test_foreign_subject_is_refused(bus: Bus) -> None:
    """A subject that no stream stores is an error that names it."""
    with pytest.raises((ValueError, BusUnavailable), match="elsewhere"):
        await bus.publish(Message("elsewhere.x", b""))


async def test_epoch_names_a_life(bus: Bus) -> None:
    """The epoch stays while the stream lives; streams differ; asking again changes nothing."""
    epoch = await bus.epoch(subjects.FACTS_STREAM)
    await bus.publish(Message(POD, b"one"))
    await bus.ensure_streams()
    assert await bus.epoch(subjects.FACTS_STREAM) == epoch
    assert await bus.epoch(subjects.INTENTS_STREAM) != epoch
