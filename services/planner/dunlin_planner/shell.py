"""
The planner's loop: read facts, step, write what changed, claim the watermark.

A switch's pipeline is written for the first time only after ipam's endpoint intents of all that its
agent said before: else flowctl would take the Pods that stand there for leftovers.
Nothing is written before the facts are read to their end and the watcher has said that they are
all: a Service whose EndpointSlices are not read yet would lose its endpoints on every switch. All
changes of `state` and all writes happen under one lock.
"""

import asyncio
import time
from collections.abc import Callable, Iterable

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Bus, BusError
from dunlin.events.findings import Finding
from dunlin.events.intents import AnyIntent, PolicyGenerationIntent
from dunlin.service.claim_reader import ClaimReader
from dunlin.service.fact_reader import Chunk, FactReader, Read
from dunlin.service.intent_writer import IntentWriter, Role, Watermark
from dunlin.service.metrics import Metrics
from dunlin.service.shards import ShardLeases
from dunlin_planner.acknowledgements import Acknowledgements
from dunlin_planner.config import PlannerSettings
from dunlin_planner.core.events import Deleted, Event, Owned, Renewed, Unit, Upserted
from dunlin_planner.core.step import (
    GENERATION_MAX,
    Changes,
    findings,
    step,
    units_by_shard,
    waiting_nodes,
)
from dunlin_planner.fences import Fences
from dunlin_planner.observer import Observer
from dunlin_planner.policy_writer import (
    COMMIT_SUBJECT,
    GENERATION_SUBJECT,
    POLICY_KINDS,
    PolicyWriter,
    is_policy,
)
from dunlin_planner.state import (
    KINDS,
    POLICY_SHARD,
    SHARD_COUNT,
    State,
    shard_of,
)

log = structlog.get_logger(__name__)

SERVICE_KINDS = ("service", "localservice")
HOST_PORT_KIND = "hostport"
FILTERS = tuple(
    f"{subjects.PREFIX}.intent.*.{kind}.*"
    for kind in ("switch", "route", *SERVICE_KINDS, HOST_PORT_KIND, *POLICY_KINDS)
)
TICK_S = 0.5
SLICE = 200
"""Units that are planned without a turn of the loop; each takes 20 to 100 us."""
_BY_KEY = frozenset({
    "policyclass", "policyport", "policynetwork", "policygeneration", "policycommit",
})  # fmt: skip


def unit_of(subject: str) -> Unit:
    """The unit that an intent of the planner comes from."""
    _, scope, kind, key = subjects.split(subject)
    if kind == "switch":
        return Unit("node", "", scope)
    if kind == "route":
        return Unit("node", "", key)
    if kind in _BY_KEY:
        return Unit(kind, "", key)
    if kind in POLICY_KINDS:
        namespace, _, name = key.partition("/")
        policy = "networkpolicy" if namespace else "clusternetworkpolicy"
        return Unit(policy if kind == "policy" else kind, namespace, name)
    namespace, _, name = key.partition(":")[0].partition("/")
    return Unit("service" if kind in SERVICE_KINDS else kind, namespace, name)


class Shell:
    """One replica."""

    def __init__(
        self,
        bus: Bus,
        shards: ShardLeases,
        settings: PlannerSettings,
        metrics: Metrics,
        observer: Observer,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self.shards = shards
        self.nudge = asyncio.Event()
        self.reader = FactReader(bus, KINDS, metrics.bad_input)
        self.acknowledged = Acknowledgements(
            bus,
            self._has_switch,
            self.nudge.set,
            metrics.registry,
            wait_s=settings.policy_wait_s,
            settle_s=settings.policy_settle_s,
        )
        self.fences = Fences(
            bus,
            self._has_switch,
            self.nudge.set,
            metrics.registry,
            wait_s=settings.policy_fence_s,
            settle_s=settings.policy_settle_s,
        )
        role = Role(
            "planner",
            settings.replica,
            SHARD_COUNT,
            lambda subject: shard_of(unit_of(subject)),
            shards.owned,
            may_withdraw=self._may_withdraw,
            may_begin=self._may_begin,
            held=shards.held,
        )
        self.claims = ClaimReader(bus, settings.replica, self.nudge.set)
        self.writer = IntentWriter(bus, FILTERS, role, self.nudge.set)
        self.policy = PolicyWriter(
            bus, self.writer, self.acknowledged, self.fences, self._next_generation
        )
        self.state = State(settings.cluster, shards=frozenset())
        self.epoch = ""
        self.seq = 0
        self._switch_seqs: dict[str, int] = {}
        self._metrics = metrics
        self._observer = observer
        self._bus = bus
        self._clock = clock
        self._lock = asyncio.Lock()
        self._caught_up = False
        self._ready_at: float | None = None
        self._complete = False
        self._claimed: tuple[object, ...] = ()

    # --- what others ask -------------------------------------------------------------------------

    def not_ready(self) -> str | None:
        """Why not, for people; a replica without shards that has read everything is ready."""
        if not self._caught_up:
            return "still reading the facts"
        if not self.state.synced:
            return "the watcher has not published all of the cluster yet"
        return None if self.writer.caught_up else "still reading the intents"

    @property
    def complete(self) -> bool:
        """What is not planned does not exist: tombstones may go."""
        return self._complete

    def findings(self) -> list[Finding]:
        """What of this replica's shards is not honoured."""
        return findings(self.state)

    def _has_switch(self, node: str) -> bool:
        return self.state.find("switch", "", node) is not None

    def _may_withdraw(self, subject: str) -> bool:
        return self.policy.may_withdraw(subject)

    def _may_begin(self, subject: str) -> bool:
        _, scope, kind, _ = subjects.split(subject)
        if kind != "switch":
            return True
        seq = self._switch_seqs.get(scope, 0)
        return self.claims.covers("ipam", self.epoch, self.writer.epoch, seq)

    # --- tasks -----------------------------------------------------------------------------------

    async def read(self) -> None:
        """Follow the facts, for ever."""
        async for chunk in self.reader.chunks():
            async with self._lock:
                await self._take(chunk)

    async def attend(self) -> None:
        """Write again when shards or somebody else's intents changed, and when a grace is over."""
        try:
            while True:
                await self._attend()
        finally:
            self.acknowledged.stop()
            self.fences.forget()

    async def _attend(self) -> None:
        try:
            async with asyncio.timeout(TICK_S):
                await self.nudge.wait()
        except TimeoutError:
            if (self._complete and self._claimed) or self.not_ready():
                return
        self.nudge.clear()
        async with self._lock:
            await self._own()
            await self._write()

    async def _take(self, chunk: Chunk) -> None:
        if chunk.reset:
            self._start_over()
        before = self.seq
        self.epoch, self.seq = chunk.epoch, chunk.seq
        self._caught_up = self._caught_up or chunk.caught_up
        await self._own()
        with self._observer.step.time():
            self._switch_seqs |= {r.name: r.seq for r in chunk.reads if r.kind == "switch"}
            # Before everything is known nothing is planned: half of it would be planned in vain.
            self._step((_event(read) for read in chunk.reads), before)
            await self._write()
        for read in chunk.reads:
            self._observer.facts.labels(read.kind).inc()

    def _start_over(self) -> None:
        log.warning("the fact stream is new: starting over")
        self.state = State(self.settings.cluster, shards=frozenset())
        self.policy.forget()
        self.writer.start_over()
        self._switch_seqs.clear()
        self._caught_up = False
        self._ready_at = None
        self._complete = False

    async def _own(self) -> None:
        """Plan for the shards that are ours now, as soon as planning makes sense."""
        owned = self.shards.held() if self.not_ready() is None else frozenset()
        if owned == self.state.shards:
            return
        lost, gained = self.state.shards - owned, owned - self.state.shards
        self.writer.forget(lost)
        if POLICY_SHARD in lost:
            self.policy.forget()
        if POLICY_SHARD in gained:
            await self._adopt_generation()
            await self.policy.adopt()
        self._step([Owned(self.state.shards - lost)])
        units = units_by_shard(self.state) if gained else {}
        for shard in sorted(gained):
            await self._plan_shard(shard, sorted(units.get(shard, ())))
        self.writer.review(gained)
        if POLICY_SHARD in gained:
            self._renew_generation()

    async def _plan_shard(self, shard: int, units: list[Unit]) -> None:
        """
        Plan all of a shard that is ours from now on.

        In slices: policy of 150,000 Pods takes longer than a lease lasts, and who does not renew it
        meanwhile loses what has just been planned.
        """
        shards = self.state.shards | {shard}
        for start in range(0, max(1, len(units)), SLICE):
            self._step([Owned(shards, frozenset(units[start : start + SLICE]))])
            await asyncio.sleep(0)

    async def _adopt_generation(self) -> None:
        """Go on with the generation that stands, so that a restart judges nothing again."""
        self.state.generation = int(time.time()) % GENERATION_MAX + 1
        try:
            record = await self._bus.get_last(GENERATION_SUBJECT)
            if record is not None and not record.is_tombstone:
                standing = wire.decode(record.data, PolicyGenerationIntent)
                self.state.generation = standing.generation
        except (BusError, msgspec.DecodeError, ValueError) as error:
            log.warning("connections are judged again: generation unknown", reason=str(error))

    def _renew_generation(self) -> None:
        """Policy changed while nobody planned it: connections must be judged again."""
        if self.writer.differs(lambda subject: is_policy(subject) and subject != COMMIT_SUBJECT):
            self.policy.want(self._next_generation())

    def _next_generation(self) -> dict[str, AnyIntent | None]:
        self.state.generation = self.state.generation % GENERATION_MAX + 1
        return step(self.state, [Renewed()]).intents

    def _step(self, events: Iterable[Event], before: int = 0) -> None:
        """`before`: the sequence of the last fact that was taken in before these."""
        changes = step(self.state, events)
        policy = {subject: i for subject, i in changes.intents.items() if is_policy(subject)}
        self.policy.want(policy, changes.turned, dict.fromkeys(changes.fenced, before))
        self.writer.want({s: i for s, i in changes.intents.items() if s not in policy})
        self._tell(changes)

    def _tell(self, changes: Changes) -> None:
        for finding in changes.findings:
            say = log.info if finding.severity == "waiting" else log.warning
            say(
                "not honoured",
                object=finding.object,
                field=finding.field,
                severity=finding.severity,
                reason=finding.reason,
            )
            if finding.severity == "unsupported":
                self._metrics.unsupported(finding.kind, finding.field)
            elif finding.severity != "waiting":
                self._metrics.bad_input(finding.kind.lower(), finding.severity)

    async def _write(self) -> None:
        if self.not_ready() is not None:
            return
        await self._own()
        self._complete = self._complete or self._is_complete()
        await self.policy.write(complete=self._complete)
        if self.policy.waiting:
            # Nothing of a fact may be claimed before all that it leads to is written.
            await self.writer.write()
            self._claimed = ()
            return
        # A Pod that is fenced holds up what came with it and later, and nothing that came before.
        floor = self.fences.floor
        mark = Watermark(self.epoch, self.seq if floor is None else floor, self._complete)
        claim = (mark, self.state.shards, self.writer.epoch, self.claims.life)
        if self.writer.pending or self._claimed != claim:
            claimed = await self.writer.flush(mark, self.state.shards)
            self._claimed = claim if claimed else ()

    def _is_complete(self) -> bool:
        """Every ready node has been described by its agent, or has had the time to be."""
        now = self._clock()
        if self._ready_at is None:
            self._ready_at = now
        waiting = waiting_nodes(self.state)
        if waiting and now < self._ready_at + self.settings.agents_grace_s:
            return False
        if waiting:
            log.warning("agents are silent: their nodes have no routes", nodes=waiting)
        return True


def _event(read: Read) -> Event:
    if read.fact is None:
        return Deleted(read.kind, read.namespace, read.name)
    return Upserted(read.fact)
