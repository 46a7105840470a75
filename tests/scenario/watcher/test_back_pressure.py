"""Floods at the watcher: what did not change is not written, what changed is, once."""

from functools import partial

from tests.scenario.watcher.cluster import FakeWorld
from tests.scenario.watcher.objects import pod
from tests.scenario.watcher.test_watcher import populate

PODS = 1_000
STORMS = 5


def _has(world: FakeWorld, ip: str) -> bool:
    return bool(world.facts("pod")["default/p4"]["ips"] == [ip])


def _listed(world: FakeWorld, before: int) -> bool:
    return bool(world.api.requests["list", "pod"] > before)


async def test_a_storm_of_relists(world: FakeWorld) -> None:
    """Every watch expires, again and again: each object is written once, and so is a change."""
    populate(world)
    for number in range(PODS):
        world.api.put("pod", pod(f"many-{number}", f"10.244.{2 + number // 250}.{number % 250}"))
    replica = await world.synced(page_size=500)
    before = world.stored
    held = len(replica.watcher.state.kinds["pod"].entries)
    for storm in range(STORMS):
        lists = world.api.requests["list", "pod"]
        world.api.frozen.add("pod")
        world.api.put("pod", pod("p4", f"10.244.1.{100 + storm}"))
        world.api.compact()
        world.api.frozen.clear()
        world.api.cut()
        ip = f"10.244.1.{100 + storm}"
        await replica.until(partial(_has, world, ip))
        await replica.until(partial(_listed, world, lists))
    await replica.until(lambda: replica.watcher.not_ready() is None)
    assert len(replica.watcher.state.kinds["pod"].entries) == held
    # One fact a storm, and sync facts: none of the thousand that did not change.
    assert world.stored - before <= 2 * STORMS


async def test_a_thousand_pods_at_once(world: FakeWorld) -> None:
    """One fact each, and a Service that changes in their midst is among them."""
    populate(world)
    replica = await world.synced()
    before = world.stored
    for number in range(PODS):
        world.api.put("pod", pod(f"many-{number}", f"10.244.{2 + number // 250}.{number % 250}"))
    await replica.until(lambda: len(world.facts("pod")) == 10 + PODS)
    assert world.stored == before + PODS
