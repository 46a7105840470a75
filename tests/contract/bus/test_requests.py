"""Requests and replies: the same on every bus."""

import asyncio

import pytest

from dunlin import wire
from dunlin.bus.base import Bus, BusUnavailable, Handler, NoResponder
from dunlin.events.rpc import Failure

SUBJECT = "dunlin.v1.rpc.ipam.echo"


async def echo(subject: str, data: bytes) -> bytes:
    """Say both back."""
    return subject.encode() + b" " + data


async def test_request_and_reply(bus: Bus) -> None:
    """A handler gets the subject and the data; wildcards may name the subject."""
    await bus.serve("dunlin.v1.rpc.ipam.*", echo)
    assert await bus.request(SUBJECT, b"hello", timeout_s=5) == SUBJECT.encode() + b" hello"


async def test_nobody_serves(bus: Bus) -> None:
    """Without a handler the request fails at once; after `stop` too, and stopping twice is fine."""
    with pytest.raises(NoResponder, match="echo"):
        await bus.request(SUBJECT, b"", timeout_s=5)
    subscription = await bus.serve(SUBJECT, echo)
    await bus.request(SUBJECT, b"", timeout_s=5)
    await subscription.stop()
    await subscription.stop()
    with pytest.raises(NoResponder):
        await bus.request(SUBJECT, b"", timeout_s=5)


async def test_a_handler_that_raises(bus: Bus) -> None:
    """The caller gets a Failure that says why; one that lacked the bus may be retried."""

    async def bad(_subject: str, data: bytes) -> bytes:
        if data == b"bus":
            raise BusUnavailable("no server")
        raise ValueError("no such block")

    await bus.serve(SUBJECT, bad)
    failure = wire.decode(await bus.request(SUBJECT, b"", timeout_s=5), Failure)
    assert (failure.reason, failure.retry) == ("ValueError: no such block", False)
    failure = wire.decode(await bus.request(SUBJECT, b"bus", timeout_s=5), Failure)
    assert failure.retry


async def test_no_reply_in_time(bus: Bus) -> None:
    """A handler that never answers costs the caller its time-out, not more."""
    hang = asyncio.Event()

    async def stuck(_subject: str, _data: bytes) -> bytes:
        await hang.wait()
        return b""

    await bus.serve(SUBJECT, stuck)
    with pytest.raises(BusUnavailable, match="echo"):
        await bus.request(SUBJECT, b"", timeout_s=0.1)
    hang.set()


async def test_a_slow_request_does_not_hold_up_another(bus: Bus) -> None:
    """Requests are served side by side."""
    release = asyncio.Event()

    async def handler(_subject: str, data: bytes) -> bytes:
        if data == b"slow":
            await release.wait()
        else:
            release.set()
        return data

    await bus.serve(SUBJECT, handler)
    slow, fast = await asyncio.gather(
        bus.request(SUBJECT, b"slow", timeout_s=5), bus.request(SUBJECT, b"fast", timeout_s=5)
    )
    assert (slow, fast) == (b"slow", b"fast")


async def test_members_of_a_queue_share_the_work(bus: Bus) -> None:
    """Each request goes to one member, and each member gets some."""
    counts = [0, 0]

    def member(index: int) -> Handler:
        async def handler(_subject: str, _data: bytes) -> bytes:
            counts[index] += 1
            return b""

        return handler

    await bus.serve(SUBJECT, member(0), queue="ipam")
    await bus.serve(SUBJECT, member(1), queue="ipam")
    for _ in range(60):
        await bus.request(SUBJECT, b"", timeout_s=5)
    assert sum(counts) == 60
    assert min(counts) > 0
