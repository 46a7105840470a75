"""The watcher's wiring: who forgets old tombstones."""

from dunlin import subjects
from dunlin.bus.base import TOMBSTONE, Message
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.service.settings import load
from dunlin_watcher.__main__ import janitor_of
from dunlin_watcher.config import Settings


async def test_the_watcher_runs_the_janitor() -> None:
    """The settings reach it, and it works on the watcher's own bus and leases."""
    settings = load(Settings, ["--tombstone-age-s", "60", "--janitor-period-s", "7"], {})
    bus = MemoryBus(MemoryServer())
    await bus.ensure_streams()
    janitor = janitor_of(bus, settings)
    assert (janitor.tombstone_age_s, janitor.period_s) == (60.0, 7.0)
    subject = subjects.fact("pod", "shop", "gone")
    await bus.publish(Message(subject, TOMBSTONE))
    now_ms = janitor.clock_ms()
    janitor.clock_ms = lambda: now_ms + 61_000
    assert await janitor.sweep(subjects.FACTS_STREAM) == 1
    assert await bus.get_last(subject) is None
