"""
The agent and the bus: read what concerns this node, write what differs, wait until it is in force.

Everything is level-triggered: a lost connection, a new stream or a failed publication only delays.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import TOMBSTONE, Batch, Bus, BusError, Message, Record
from dunlin.events.facts import AttachmentFact, BlockFact, Meta, NodeFact, SwitchFact
from dunlin.events.rpc import BarrierReply, BarrierRequest, Failure
from dunlin.events.state import Applied, Progress
from dunlin.service.pulse import Pulse
from dunlin.watermarks import SERVICES, Epochs, Watermarks
from dunlin_agent import core
from dunlin_agent.core import Effect, Event, FactRead, Publish, Retract, Seed
from dunlin_agent.metrics import AgentMetrics
from dunlin_agent.state import Neighbour, OwnFact, State

T = TypeVar("T")

RETRY_SECONDS: Final = 0.2
BARRIER_MS: Final = 5_000

log = structlog.get_logger(__name__)


Seeder = Callable[[Neighbour], Awaitable[None]]


class NotInForceError(Exception):
    """What was published is not on the switch in time; the message says who is behind."""


class Facts:
    """State, and the tasks that keep it and the stream in agreement."""

    def __init__(
        self,
        bus: Bus,
        node: str,
        metrics: AgentMetrics,
        *,
        now_ms: Callable[[], int],
        on_applied: Callable[[Applied], None] = lambda _applied: None,
    ) -> None:
        self.bus = bus
        self.node = node
        self.state = State(node)
        self.watermarks = Watermarks()
        self.applied: Applied | None = None
        self.pulse = Pulse()
        self.blocks_pulse = Pulse()
        self.metrics = metrics
        self._now_ms = now_ms
        self._on_applied = on_applied
        self._own_prefix = subjects.fact("attachment", node, "x").rpartition(".")[0]

    def emit(self, event: Event) -> tuple[Effect, ...]:
        """Take one event in, and wake whoever waits for what it brought."""
        self.state, effects = core.step(self.state, event)
        if self.state.ports is not None:
            self.metrics.attachments.set(len(self.state.ports))
        self.pulse.beat()
        return effects

    # --- tasks ------------------------------------------------------------------------------------

    async def follow_facts(self) -> None:
        """Our Node and attachments, everybody's switches and blocks, for ever."""
        filters = [
            subjects.fact("node", "", self.node),
            f"{self._own_prefix}.>",
            subjects.facts_of("switch"),
            subjects.facts_of("block"),
        ]
        async for batch in self.bus.follow(subjects.FACTS_STREAM, filters):
            self._take(batch)

    async def follow_state(self) -> None:
        """Who has read how far, and what our switch holds, for ever."""
        filters = [f"{subjects.PREFIX}.progress.>", subjects.applied(self.node)]
        async for batch in self.bus.follow(subjects.STATE_STREAM, filters):
            if batch.reset:
                self.watermarks.forget()
                self.applied = None
            for record in batch.records:
                self._take_state(record)
            self.pulse.beat()

    async def publish(self, seed: Seeder) -> None:
        """Do what the state asks for, until it asks for nothing; for ever."""
        while True:
            changed = self.pulse.take()
            effects = tuple(core.plan(self.state))
            if not effects:
                await changed.wait()
            elif not await self._perform(effects, seed):
                await asyncio.sleep(RETRY_SECONDS)

    async def _perform(self, effects: tuple[Effect, ...], seed: Seeder) -> bool:
        """True when all of it was done."""
        ok = True
        for effect in effects:
            if isinstance(effect, Seed):
                ok = await self._seed(effect.neighbour, seed) and ok
        epoch = self.state.epoch
        messages = [self._message(e) for e in effects if not isinstance(e, Seed)]
        if not messages:
            return ok
        try:
            results = await self.bus.publish_many([message for message, _ in messages])
            if await self.bus.epoch(subjects.FACTS_STREAM) != epoch:
                return False
        except BusError as error:
            log.warning("facts not published", error=str(error))
            return False
        for (message, fact), result in zip(messages, results, strict=True):
            if isinstance(result, BusError):
                log.warning("fact not published", subject=message.subject, error=str(result))
                ok = False
            elif self.state.epoch == epoch:
                self.emit(FactRead(message.subject, result, fact))
        return ok

    def _message(self, effect: Publish | Retract) -> tuple[Message, OwnFact | None]:
        if isinstance(effect, Retract):
            return Message(effect.subject, TOMBSTONE), None
        meta = Meta(observed_ms=self._now_ms())
        fact: OwnFact = msgspec.structs.replace(effect.fact, meta=meta)
        return Message(fact.subject, wire.encode(fact)), fact

    async def _seed(self, neighbour: Neighbour, seed: Seeder) -> bool:
        try:
            await seed(neighbour)
        except Exception as error:  # noqa: BLE001 - tried again; a tunnel without it only starts slower
            log.warning("tunnel neighbour not seeded", ip=str(neighbour.ip), error=str(error))
            return False
        self.emit(core.NeighbourSeeded(neighbour))
        return True

    # --- in ---------------------------------------------------------------------------------------

    def _take(self, batch: Batch) -> None:
        if batch.reset or batch.epoch != self.state.epoch:
            self.emit(core.StreamBegan(batch.epoch))
        for record in batch.records:
            self._take_fact(record)
        if batch.caught_up and not self.state.caught_up:
            self.emit(core.StreamCaughtUp())

    def _take_fact(self, record: Record) -> None:
        kind = subjects.split(record.subject)[1:2]
        if kind == ["block"]:
            self._take_block(record)
            return
        if kind == ["node"]:
            self._take_node(record)
            return
        type_: type[OwnFact] = SwitchFact if kind == ["switch"] else AttachmentFact
        fact = None if record.is_tombstone else self._decode(record, type_)
        self.emit(FactRead(record.subject, record.seq, fact))

    def _take_block(self, record: Record) -> None:
        """Only that one of ours may have changed is of interest; ipam then says what is true."""
        fact = None if record.is_tombstone else self._decode(record, BlockFact)
        if fact is None or fact.node == self.node:
            self.blocks_pulse.beat()

    def _take_node(self, record: Record) -> None:
        """Its addresses; a Node that is gone says nothing of them."""
        fact = None if record.is_tombstone else self._decode(record, NodeFact)
        if fact is not None and fact.ips != self.state.internal_ips:
            self.emit(core.NodeRead(fact.ips))

    def _take_state(self, record: Record) -> None:
        words = subjects.split(record.subject)
        if words[0] == "applied":
            self.applied = None if record.is_tombstone else self._decode(record, Applied)
            if self.applied is not None:
                self._on_applied(self.applied)
        elif record.is_tombstone:
            self.watermarks.retract(words[1], words[2])
        else:
            progress = self._decode(record, Progress)
            if progress is not None:
                self.watermarks.claim(progress)

    def _decode(self, record: Record, kind: type[T]) -> T | None:
        try:
            return wire.decode(record.data, kind)
        except (msgspec.MsgspecError, ValueError) as error:
            self.metrics.common.bad_input(kind.__name__, "unreadable")
            log.warning("unreadable message", subject=record.subject, error=str(error))
            return None

    # --- the barrier ------------------------------------------------------------------------------

    async def in_force(self, fact: AttachmentFact, timeout_s: float) -> None:
        """
        Return once the stream says `fact`, and this node's switch holds all that follows from it.

        Raises:
            NotInForceError: not within `timeout_s`; says what is missing.
        """
        stage = ["the fact has not been stored"]
        try:
            async with asyncio.timeout(timeout_s):
                await self.pulse.until(lambda: core.is_stored(self.state, fact) is not None)
                seq = core.is_stored(self.state, fact) or 0
                facts = self.state.epoch
                while True:
                    epochs = Epochs(facts, await self._epoch(subjects.INTENTS_STREAM))
                    stage[0] = "; ".join(self.watermarks.behind(epochs, seq))
                    revision = await self._covered(epochs, seq)
                    stage[0] = f"the switch does not hold revision {revision}"
                    if await self._barrier(epochs.intents, revision, stage):
                        return
        except TimeoutError as error:
            raise NotInForceError(f"{stage[0]} (waited {timeout_s:g} s)") from error

    async def _covered(self, epochs: Epochs, seq: int) -> int:
        """The newest intent that facts up to `seq` lead to, once all have been read."""
        await self.pulse.until(
            lambda: all(
                self.watermarks.covering(service, epochs, seq) is not None for service in SERVICES
            )
        )
        return max(self.watermarks.covering(service, epochs, seq) or 0 for service in SERVICES)

    async def _barrier(self, epoch: str, revision: int, stage: list[str]) -> bool:
        """Whether the owner of our switch says that it holds `revision`; waits a little if not."""
        subject = subjects.rpc("flowctl", "barrier", self.node)
        request = BarrierRequest(
            node=self.node,
            revision=revision,
            epoch=epoch,
            timeout_ms=BARRIER_MS,
            prepared=True,
        )
        try:
            data = await self.bus.request(
                subject, wire.encode(request), timeout_s=BARRIER_MS / 1000 + 1
            )
            reply: BarrierReply | Failure = wire.decode(data, BarrierReply | Failure)  # type: ignore[arg-type]
        except (BusError, msgspec.MsgspecError, ValueError) as error:
            stage[0] = f"flowctl gave no answer: {error}"
        else:
            if isinstance(reply, BarrierReply):
                if reply.applied:
                    return True
                missing = ", ".join(reply.missing[:5])
                stage[0] = f"the switch holds revision {reply.revision}, not {revision}: {missing}"
            else:
                stage[0] = f"flowctl: {reply.reason}"
        await asyncio.sleep(RETRY_SECONDS)
        return False

    async def _epoch(self, stream: str) -> str:
        while True:
            try:
                return await self.bus.epoch(stream)
            except BusError as error:
                log.warning("epoch unknown", stream=stream, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
