"""
ipam's loops: one reads facts, one does duties and writes endpoint intents for its nodes.

Reading never waits for writing, because requests wait for reading. A new fact stream is taken in
under the lock of the writing loop: what was desired before must not be withdrawn by mistake.
"""

import asyncio
import time
from collections.abc import Callable
from zlib import crc32

import structlog

from dunlin import subjects
from dunlin.bus.base import Bus, BusUnavailable
from dunlin.events.facts import kind_of
from dunlin.events.findings import Finding
from dunlin.service.claim_reader import ClaimReader
from dunlin.service.fact_reader import FactReader
from dunlin.service.intent_writer import IntentWriter, Role, Watermark
from dunlin.service.metrics import Metrics
from dunlin.service.shards import ShardLeases
from dunlin_ipam.config import IpamSettings
from dunlin_ipam.core.duties import duties
from dunlin_ipam.core.endpoints import Plan, plan_node
from dunlin_ipam.observer import Observer
from dunlin_ipam.server import NodeLocks
from dunlin_ipam.state import KINDS
from dunlin_ipam.view import View

log = structlog.get_logger(__name__)

SHARD_COUNT = 16
FILTERS = (f"{subjects.PREFIX}.intent.*.endpoint.*",)
ROUNDS_MAX = 32
RETRY_S = 0.2
LATER_MS = 200
"""
How long duties that no intent waits for are put off, so that a burst of requests is not slowed.
"""


def shard_of_node(node: str) -> int:
    """Which share of the work a node is in."""
    return crc32(node.encode()) % SHARD_COUNT


def _node_of(subject: str) -> str:
    return subjects.split(subject)[1]


class Shell:
    """One replica."""

    def __init__(
        self,
        bus: Bus,
        shards: ShardLeases,
        settings: IpamSettings,
        metrics: Metrics,
        observer: Observer,
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.shards = shards
        self.nudge = asyncio.Event()
        self.claims = ClaimReader(bus, settings.replica, self.nudge.set)
        reader = FactReader(bus, KINDS, metrics.bad_input)
        self.view = View(bus, reader, settings.rules, self.nudge.set, now_ms=now_ms)
        role = Role(
            "ipam",
            settings.replica,
            SHARD_COUNT,
            lambda subject: shard_of_node(_node_of(subject)),
            shards.owned,
            self._may_withdraw,
            held=shards.held,
        )
        self.writer = IntentWriter(bus, FILTERS, role, self.nudge.set)
        self.locks = NodeLocks()
        self.planned: dict[str, Plan] = {}
        self.due_ms: dict[str, int] = {}
        self.working: frozenset[int] = frozenset()
        self._metrics = metrics
        self._observer = observer
        self._lock = asyncio.Lock()
        self._claimed: tuple[object, ...] = ()

    # --- what others ask -------------------------------------------------------------------------

    def not_ready(self) -> str | None:
        """Why not, for people."""
        if not self.view.caught_up:
            return "still reading the facts"
        if not self.view.state.synced:
            return "the watcher has not published all of the cluster yet"
        return None if self.writer.caught_up else "still reading the intents"

    def findings(self) -> list[Finding]:
        """What is wrong on the nodes of this replica."""
        return [finding for node in sorted(self.planned) for finding in self.planned[node].findings]

    def _may_withdraw(self, subject: str) -> bool:
        """The node's agent has published everything that stands there, or the Node is gone."""
        node = _node_of(subject)
        state = self.view.state
        return state.node(node) is None or state.find("switch", "", node) is not None

    # --- tasks -----------------------------------------------------------------------------------

    async def read(self) -> None:
        """Follow the facts, for ever."""
        async for chunk in self.view.reader.chunks():
            if chunk.reset:
                async with self._lock:
                    self.view.start_over()
                    self.planned.clear()
                    self.due_ms.clear()
                    self.working = frozenset()
                    self.writer.start_over()
            self.view.take(chunk)

    async def work(self) -> None:
        """Duties, endpoint intents and claims, for ever."""
        while True:
            try:
                async with asyncio.timeout(self._pause_s()):
                    await self.nudge.wait()
            except TimeoutError:
                log.debug("a node is due")
            self.nudge.clear()
            async with self._lock:
                if self.not_ready() is None:
                    with self._observer.rounds.time():
                        await self._round()

    def _pause_s(self) -> float | None:
        """Until time alone makes something due; None: never."""
        if not self.due_ms:
            return None
        return max(0.0, (min(self.due_ms.values()) - self.view.now_ms()) / 1000)

    async def _round(self) -> None:
        self._own()
        # What is claimed is what was read when the touched nodes were taken.
        mark = Watermark(self.view.epoch, self.view.seq, complete=True)
        now = self.view.now_ms()
        touched, self.view.touched = self.view.touched, set()
        for node in self.view.state.later:
            self.due_ms[node] = min(self.due_ms.get(node, now + LATER_MS), now + LATER_MS)
        self.view.state.later.clear()
        due = {node for node, at in self.due_ms.items() if at <= now}
        try:
            for node in sorted(touched | due):
                self.due_ms.pop(node, None)
                if shard_of_node(node) in self.working:
                    await self._work_on(node, dutiful=node in due)
        except BusUnavailable as error:
            log.warning("duties not done", error=str(error))
            self.view.touched |= touched | due
            await asyncio.sleep(RETRY_S)
            self.nudge.set()
            return
        claim = (mark.epoch, mark.seq, self.writer.epoch, self.claims.life)
        if self.writer.pending or self._claimed != claim:
            claimed = await self.writer.flush(mark, self.working)
            self._claimed = claim if claimed else ()
            if not claimed:
                asyncio.get_running_loop().call_later(RETRY_S, self.nudge.set)

    def _own(self) -> None:
        owned = self.shards.held()
        if owned == self.working:
            return
        lost, gained = self.working - owned, owned - self.working
        self.writer.forget(lost)
        for node in [node for node in self.planned if shard_of_node(node) in lost]:
            del self.planned[node]
        self.working = owned
        for node in self.view.state.known_nodes():
            if shard_of_node(node) in gained:
                self.view.touched.add(node)
                self.due_ms[node] = 0
        self.writer.review(gained)
        self._claimed = ()

    async def _work_on(self, node: str, *, dutiful: bool) -> None:
        """
        Plan.

        Duties at once only where the plan waits for them, else a little later, many together.
        """
        if not dutiful:
            self._plan(node)
            dutiful = any(f.severity == "waiting" for f in self._found(node))
        if dutiful:
            await self._do_duties(node)
            self._plan(node)
        else:
            self.due_ms[node] = self.view.now_ms() + LATER_MS
        await asyncio.sleep(0)

    async def _do_duties(self, node: str) -> None:
        async with self.locks.hold(node):
            for _ in range(ROUNDS_MAX):
                found = duties(self.view.state, node, self.view.now_ms())
                if not found.writes:
                    break
                for write in found.writes:
                    kind = kind_of(type(write.fact))
                    self._observer.duties.labels(kind).inc()
                    log.info(
                        "ledger",
                        line=write.fact.name,
                        node=node,
                        change="forgotten"
                        if write.gone
                        else getattr(write.fact, "state", "claimed"),
                    )
                await self.view.write(found.writes)
        if found.again_ms is not None:
            self.due_ms[node] = found.again_ms
        if found.writes:
            self.due_ms[node] = self.view.now_ms()

    def _found(self, node: str) -> tuple[Finding, ...]:
        return self.planned.get(node, Plan()).findings

    def _plan(self, node: str) -> None:
        old, new = self.planned.get(node, Plan()), plan_node(self.view.state, node)
        if new == Plan():
            self.planned.pop(node, None)
        else:
            self.planned[node] = new
        # Of one node and one kind: keys tell them apart, and a subject costs as much as a plan.
        before = {intent.key: intent for intent in old.intents}
        after = {intent.key: intent for intent in new.intents}
        self.writer.want({i.subject: i for key, i in after.items() if before.get(key) != i})
        self.writer.want({before[key].subject: None for key in before.keys() - after.keys()})
        for finding in new.findings:
            if finding not in old.findings:
                self._tell(finding)

    def _tell(self, finding: Finding) -> None:
        say = log.info if finding.severity == "waiting" else log.warning
        say(
            "not honoured",
            object=finding.object,
            field=finding.field,
            severity=finding.severity,
            reason=finding.reason,
        )
        if finding.severity != "waiting":
            self._metrics.bad_input(finding.kind.lower(), finding.severity)
