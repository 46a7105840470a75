"""The janitor forgets old tombstones and nothing else."""

from dunlin import subjects
from dunlin.bus.base import TOMBSTONE, Bus, Message
from dunlin.bus.janitor import Janitor, now_ms
from tests.fixtures.worlds import World

HOUR_MS = 3_600_000


async def test_old_tombstones_go(bus: Bus, world: World) -> None:
    """A tombstone older than the limit goes with all that was before it; the living stay."""
    gone, alive = (subjects.fact("pod", "shop", name) for name in ("gone", "alive"))
    for data in (b"1", TOMBSTONE):
        await bus.publish(Message(gone, data))
    for data in (TOMBSTONE, b"back"):
        await bus.publish(Message(alive, data))
    shift_ms = 0
    janitor = Janitor(
        bus,
        world.leases(bus),
        "me",
        tombstone_age_s=7200,
        clock_ms=lambda: now_ms() + shift_ms,
    )
    assert await janitor.sweep(subjects.FACTS_STREAM) == 0
    assert await bus.get_last(gone) is not None
    shift_ms = 3 * HOUR_MS
    assert await janitor.sweep(subjects.FACTS_STREAM) == 1
    assert await bus.get_last(gone) is None
    record = await bus.get_last(alive)
    assert record is not None
    assert record.data == b"back"
    assert await janitor.sweep(subjects.FACTS_STREAM) == 0
