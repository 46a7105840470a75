"""Acknowledgements: the newest state of each switch, and no work for those that say nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from types import SimpleNamespace
from typing import Any, cast

from dunlin import wire
from dunlin.bus.base import BusError, BusUnavailable, Message
from dunlin.events.state import Applied
from dunlin_flowctl.handles import Handles
from dunlin_flowctl.publish import Publisher
from tests.unit.flowctl.harness import until

HOUR_S = 3600.0


class Runner:
    """A switch that holds `revision`; `asked`: how often somebody wanted to know."""

    def __init__(self, node: str) -> None:
        self.node, self.revision, self.asked = node, 1, 0
        self.owns = True

    def applied(self) -> Applied:
        """As a runner says it."""
        self.asked += 1
        return Applied(node=self.node, dpid=1, revision=self.revision, epoch="e", connected=True)


class Runners(dict[str, Runner]):
    """`walked`: how often somebody went through all of them."""

    walked = 0

    def __iter__(self) -> Iterator[str]:
        self.walked += 1
        return super().__iter__()

    def items(self) -> Any:
        """Counted, too."""
        self.walked += 1
        return super().items()


class Bus:
    """Takes messages, unless it is `away`."""

    def __init__(self) -> None:
        self.said: list[Applied] = []
        self.away = False

    async def publish_many(self, messages: list[Message]) -> list[int | BusError]:
        """As a bus."""
        if self.away:
            return [BusUnavailable("away")] * len(messages)
        self.said += [wire.decode(message.data, Applied) for message in messages]
        return list(range(len(messages)))


class Scene:
    """A publisher of `count` switches."""

    def __init__(self, count: int, **settings: float) -> None:
        self.bus = Bus()
        self.runners = Runners({f"n{number}": Runner(f"n{number}") for number in range(count)})
        values = {"applied_interval_s": 0.05, "applied_refresh_s": HOUR_S} | settings
        handles = SimpleNamespace(
            settings=SimpleNamespace(**values), runners=self.runners, bus=self.bus, publisher=None
        )
        self.publisher = Publisher(cast("Handles", handles))

    def said(self, node: str) -> list[int]:
        """The revisions that were published of a switch, in order."""
        return [applied.revision for applied in self.bus.said if applied.node == node]

    def moves(self, node: str, revision: int) -> None:
        """A switch holds more."""
        self.runners[node].revision = revision
        self.publisher.mark(node)


@contextlib.asynccontextmanager
async def scene(count: int, **settings: float) -> AsyncIterator[Scene]:
    """It runs meanwhile."""
    made = Scene(count, **settings)
    running = asyncio.create_task(made.publisher.run())
    try:
        yield made
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_changes_while_a_switch_rests_are_one_message() -> None:
    """The first is said at once, the rest together, with the newest state, after the interval."""
    async with scene(2) as made:
        made.moves("n0", 2)
        await until(lambda: made.said("n0") == [2])
        for revision in range(3, 50):
            made.moves("n0", revision)
        made.moves("n1", 7)
        await until(lambda: made.said("n1") == [7])
        await until(lambda: made.said("n0") == [2, 49])


async def test_one_switch_that_speaks_is_all_that_is_looked_at() -> None:
    """Of 500 switches one changes 20 times: nobody walks through the others."""
    async with scene(500, applied_interval_s=0.0) as made:
        walked = made.runners.walked
        for revision in range(2, 22):
            made.moves("n0", revision)
            await until(lambda: made.said("n0")[-1:] == [revision])  # noqa: B023 - waited for here
        assert made.runners.walked == walked
        assert {runner.asked for runner in made.runners.values() if runner.node != "n0"} == {0}
        made.publisher.forget()
        await until(lambda: len({applied.node for applied in made.bus.said}) == 500)
        assert made.runners.walked > walked, "the count does not count"


async def test_what_the_bus_did_not_take_is_said_again() -> None:
    """After the refresh time, in its newest state; a switch that is gone meanwhile is not."""
    async with scene(2, applied_refresh_s=0.1) as made:
        made.bus.away = True
        made.moves("n0", 2)
        made.moves("n1", 2)
        await until(lambda: made.runners["n0"].asked and made.runners["n1"].asked)
        made.runners["n0"].revision = 3
        del made.runners["n1"]
        made.bus.away = False
        await until(lambda: made.said("n0") == [3])
        assert not made.said("n1")
        made.moves("n0", 4)
        await until(lambda: made.said("n0") == [3, 4])


async def test_a_new_state_stream_gets_everything_again() -> None:
    """Also what has been said; what did not change is not said twice otherwise."""
    async with scene(1, applied_refresh_s=0.05) as made:
        made.moves("n0", 2)
        await until(lambda: made.said("n0") == [2])
        asked = made.runners["n0"].asked
        await until(lambda: made.runners["n0"].asked > asked + 2)
        assert made.said("n0") == [2]
        made.publisher.forget()
        await until(lambda: made.said("n0") == [2, 2])


async def test_of_a_switch_that_another_has_claimed_nothing_is_said() -> None:
    """It is said by its new owner; contradicted, what has been said is said again."""
    async with scene(2) as made:
        made.runners["n0"].owns = False
        made.moves("n0", 2)
        made.moves("n1", 2)
        await until(lambda: made.said("n1") == [2])
        assert not made.said("n0")
        for node in ("n1", "n9"):
            made.publisher.contradicted(node)
        await until(lambda: made.said("n1") == [2, 2])
