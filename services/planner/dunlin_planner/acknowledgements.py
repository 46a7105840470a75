"""Do all switches hold what is prepared? Read from their acknowledgements, only while asked."""

import asyncio
import time
from collections.abc import Callable
from contextlib import aclosing

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter

from dunlin import subjects, wire
from dunlin.bus.base import Bus, Record
from dunlin.events.state import Applied

log = structlog.get_logger(__name__)

APPLIED = f"{subjects.PREFIX}.applied.*"
NAMED_MAX = 20


class Said:
    """
    What switches say of themselves; read only while somebody waits for it.

    `has_switch(node)`: it has one now. One that has been without a session for `wait_s` is not
    waited for, nor one that never held anything.
    """

    def __init__(self, bus: Bus, has_switch: Callable[[str], bool], wait_s: float) -> None:
        self._bus = bus
        self._has_switch = has_switch
        self._wait_s = wait_s
        self._behind: dict[str, Applied] = {}

    async def until_all(self, holds: Callable[[Applied], bool]) -> None:
        """Read until `holds` of every switch that is waited for; all that stands is known first."""
        self._behind.clear()
        async with aclosing(self._bus.follow(subjects.STATE_STREAM, [APPLIED])) as batches:
            caught_up = False
            async for batch in batches:
                if batch.reset:
                    self._behind.clear()
                for record in batch.records:
                    self._take(record, holds)
                caught_up = caught_up or batch.caught_up
                if caught_up and not self.missing():
                    return

    def missing(self) -> set[str]:
        """Nodes of switches that are waited for, as far as was read."""
        lost_ms = (time.time() - self._wait_s) * 1000
        return {
            node
            for node, said in self._behind.items()
            if (said.connected or said.at_ms >= lost_ms) and self._has_switch(node)
        }

    def _take(self, record: Record, holds: Callable[[Applied], bool]) -> None:
        node = subjects.split(record.subject)[-1]
        said = None
        if not record.is_tombstone:
            try:
                said = wire.decode(record.data, Applied)
            except (msgspec.DecodeError, ValueError) as error:
                # Bad input, no bug of ours.
                log.error("bad acknowledgement", subject=record.subject, reason=str(error))  # noqa: TRY400
                return
        if said is None or holds(said):
            self._behind.pop(node, None)
        else:
            self._behind[node] = said


class Acknowledgements:
    """
    Waits for one prepared change at a time.

    `has_switch(node)`: it has one now. A switch that nobody is connected to is waited for as
    long as one that is silent: `wait_s` since it was heard last. After that the change goes on
    without it. `on_done` is called once, `settle_s` after the last answer.
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
        self._task: asyncio.Task[None] | None = None
        self._deadline: float | None = None
        self._said = Said(bus, has_switch, wait_s)
        self.done = 0
        """The newest change that may go on."""
        self._changes = Counter(
            "dunlin_planner_policy_changes_total",
            "Changes of policy; prepared: in two steps; overdue: without switches that are silent.",
            ["result"],
            registry=registry,
        )

    def count(self, result: str) -> None:
        """One more change of this kind."""
        self._changes.labels(result).inc()

    def watch(self, change: int, epoch: str) -> None:
        """
        Until every switch holds this change as prepared (`epoch`: of the intents).

        Another one that is watched is forgotten, but not since when.
        """
        if self._task is not None:
            self._task.cancel()
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().time() + self._wait_s
        self._task = asyncio.create_task(self._run(change, epoch, self._deadline))

    def stop(self) -> None:
        """Nothing is prepared any more, or it is somebody else's."""
        if self._task is not None:
            self._task.cancel()
        self._task = None
        self._deadline = None
        self.done = 0

    async def _run(self, change: int, epoch: str, deadline: float) -> None:
        def holds(said: Applied) -> bool:
            return said.epoch == epoch and said.prepared >= change

        try:
            async with asyncio.timeout_at(deadline):
                await self._said.until_all(holds)
        except TimeoutError:
            missing = sorted(self._said.missing())
            self.count("overdue")
            log.warning(
                "policy goes on without switches that do not answer",
                change=change,
                nodes=missing[:NAMED_MAX],
                number=len(missing),
            )
        await asyncio.sleep(self._settle_s)
        self.done = change
        self._on_done()
