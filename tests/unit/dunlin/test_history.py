"""Events as JSON lines, from the memory bus."""

import asyncio
import json

from dunlin import subjects
from dunlin.bus.base import TOMBSTONE, Message
from dunlin.bus.memory import MemoryBus
from dunlin.service.history import event_lines


async def test_latest_events_of_both_streams_oldest_first() -> None:
    """The limit counts over both streams, and a tombstone and garbage are events too."""
    bus = MemoryBus()
    await bus.ensure_streams()
    await bus.publish(Message(subjects.fact("pod", "default", "old"), b"{}"))
    await bus.publish(Message(subjects.fact("pod", "default", "a.b"), b'{"kind":"pod"}'))
    await bus.publish(Message(subjects.intent("all", "route", "n1"), b"\xff"))
    await bus.publish(Message(subjects.fact("pod", "default", "a.b"), TOMBSTONE))
    lines = [json.loads(line) async for line in event_lines(bus, limit=3, follow=False)]
    assert sorted((e["stream"], e["subject"], e["deleted"]) for e in lines) == [
        ("fact", "pod/default/a.b", False),
        ("fact", "pod/default/a.b", True),
        ("intent", "all/route/n1", False),
    ]
    await bus.close()


async def test_follow_goes_on() -> None:
    """After the past each new event comes as it is published."""
    bus = MemoryBus()
    await bus.ensure_streams()
    lines = event_lines(bus, limit=1, follow=True)
    await bus.publish(Message(subjects.fact("pod", "x", "one"), b"{}"))
    assert json.loads(await asyncio.wait_for(anext(lines), 5))["subject"] == "pod/x/one"
    await bus.publish(Message(subjects.fact("pod", "x", "two"), b"{}"))
    assert json.loads(await asyncio.wait_for(anext(lines), 5))["subject"] == "pod/x/two"
    await lines.aclose()
    await bus.close()
