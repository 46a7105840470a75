"""
New Pods that a rule denies by their labels stay fenced until every switch knows them (ADR 0039).

Their own switch lifts the fence (`policysubject`); the switches of those that they must not reach
know them by another intent (`policypeer`). Where a rule says Deny or Pass, who is not known is let
through, so the first is written only when every switch holds the second.
"""

import asyncio
from collections.abc import Callable, Container, Mapping

import structlog
from prometheus_client import CollectorRegistry, Counter

from dunlin.bus.base import Bus
from dunlin.events.intents import AnyIntent
from dunlin.events.state import Applied
from dunlin_planner.acknowledgements import NAMED_MAX, Said

log = structlog.get_logger(__name__)


class Fences:
    """
    What lifts fences, by subject: not committed yet, or committed and not known everywhere.

    `has_switch(node)`: it has one now. They are waited for `wait_s`; one that has been without
    a session for as long is not. `on_done` is called `settle_s` after the last answer.
    """

    def __init__(
        self,
        bus: Bus,
        has_switch: Callable[[str], bool],
        on_done: Callable[[], None],
        registry: CollectorRegistry,
        *,
        wait_s: float,
        settle_s: float,
    ) -> None:
        self._on_done = on_done
        self._wait_s = wait_s
        self._settle_s = settle_s
        self._said = Said(bus, has_switch, wait_s)
        self._task: asyncio.Task[None] | None = None
        self._next: dict[str, AnyIntent] = {}
        self._now: dict[str, AnyIntent] = {}
        self._floors: dict[str, int] = {}
        self._known = False
        self._lifted = Counter(
            "dunlin_planner_fences_total",
            "Pods that stayed fenced until every switch knew them; overdue: all but silent ones.",
            ["result"],
            registry=registry,
        )

    def __bool__(self) -> bool:
        """Some Pod stays fenced."""
        return bool(self._next or self._now)

    @property
    def floor(self) -> int | None:
        """Facts up to here have led to all that they lead to; None: all have."""
        return min(self._floors.values(), default=None)

    def forget(self) -> None:
        """The shard is somebody else's, or this process ends."""
        self._next.clear()
        self._now.clear()
        self._floors.clear()
        self._stop()

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._task = None
        self._known = False

    def keep(
        self, changes: Mapping[str, AnyIntent | None], fenced: Mapping[str, int]
    ) -> dict[str, AnyIntent | None]:
        """
        The changes that may be written now.

        `fenced`: those that must wait, with the sequence of the last fact before what led to them.

        A Pod that waits and changes waits anew: it may be something else to other switches now.
        """
        now = dict(changes)
        for subject in changes.keys() & {*fenced, *self._next, *self._now}:
            self._now.pop(subject, None)
            self._next.pop(subject, None)
            floor = self._floors.pop(subject, None)
            intent = changes[subject]
            if intent is not None:
                self._next[subject] = intent
                self._floors[subject] = fenced[subject] if floor is None else floor
                del now[subject]
        if not self._now:
            # Whatever was asked for, it was about none of those that wait now.
            self._stop()
        return now

    def begin(self, revision: int, epoch: str) -> None:
        """What is known of these Pods is committed at `revision`: wait until it is in force."""
        if not self._next or self._now:
            return
        self._now, self._next = self._next, {}
        self._task = asyncio.create_task(self._run(revision, epoch))

    def lifted(self, but: Container[str] = ()) -> dict[str, AnyIntent]:
        """What may be written now, once; `but`: these wait on, for what they will be."""
        if not self._known:
            return {}
        found, self._now = self._now, {}
        self._known = False
        self._next = {s: found.pop(s) for s in list(found) if s in but} | self._next
        for subject in found:
            del self._floors[subject]
        return found

    async def _run(self, revision: int, epoch: str) -> None:
        def holds(said: Applied) -> bool:
            return said.epoch == epoch and said.revision >= revision

        result = "everywhere"
        try:
            async with asyncio.timeout(self._wait_s):
                await self._said.until_all(holds)
        except TimeoutError:
            result = "overdue"
            missing = sorted(self._said.missing())
            log.warning(
                "new Pods are let go before these switches know them",
                nodes=missing[:NAMED_MAX],
                number=len(missing),
            )
        await asyncio.sleep(self._settle_s)
        self._lifted.labels(result).inc(len(self._now))
        self._known = True
        self._on_done()
