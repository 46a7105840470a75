"""
What switches must do about Services, as this node needs to know it: one reader, several listeners.

Its Services (scope all), its own part of them, its Pods' hostPorts, and its own switch.
"""

from collections.abc import Sequence
from typing import Final, Protocol

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Batch, Bus, Record
from dunlin.events.intents import (
    HostPortIntent,
    LocalServiceIntent,
    ServicePortIntent,
    SwitchIntent,
    intent_id,
)
from dunlin.events.state import Applied
from dunlin.model.ids import IntentId
from dunlin_agent.metrics import AgentMetrics

log = structlog.get_logger(__name__)

NodeIntent = ServicePortIntent | LocalServiceIntent | HostPortIntent | SwitchIntent
KINDS: Final[dict[str, type[NodeIntent]]] = {
    "service": ServicePortIntent,
    "localservice": LocalServiceIntent,
    "hostport": HostPortIntent,
    "switch": SwitchIntent,
}


class Listener(Protocol):
    """Who is told; `settled`: what came so far is the whole state of the stream."""

    def put(self, intent: NodeIntent, seq: int) -> None:
        """A newer version of an intent; `seq`: of its message."""

    def remove(self, intent_id: IntentId) -> None:
        """An intent is gone."""

    def clear(self) -> None:
        """Another life of the stream: nothing is known."""

    def settled(self) -> None:
        """The newest state has been told."""


class Intents:
    """Follows the intents of one node."""

    def __init__(self, bus: Bus, node: str, metrics: AgentMetrics) -> None:
        self._bus = bus
        self._node = node
        self._metrics = metrics
        self._epoch = ""
        self._newest = 0

    def in_force(self, applied: Applied | None) -> bool:
        """A switch does all that has been told here."""
        if applied is None or not applied.connected or applied.pending:
            return False
        return applied.epoch == self._epoch and applied.revision >= self._newest

    async def follow(self, listeners: Sequence[Listener]) -> None:
        """Tell the listeners; for ever."""
        scope = f"{subjects.PREFIX}.intent.{subjects.escape(self._node)}"
        filters = [
            f"{subjects.PREFIX}.intent.{subjects.ALL_SCOPE}.service.>",
            f"{scope}.localservice.>",
            f"{scope}.hostport.>",
            f"{scope}.switch.>",
        ]
        async for batch in self._bus.follow(subjects.INTENTS_STREAM, filters):
            self.take(batch, listeners)

    def take(self, batch: Batch, listeners: Sequence[Listener]) -> None:
        """One batch, told to all."""
        if batch.reset:
            self._newest = 0
            for listener in listeners:
                listener.clear()
        self._epoch = batch.epoch
        for record in batch.records:
            self._newest = record.seq
            self._take_record(record, listeners)
        if batch.caught_up:
            for listener in listeners:
                listener.settled()

    def _take_record(self, record: Record, listeners: Sequence[Listener]) -> None:
        words = subjects.split(record.subject)
        if record.is_tombstone:
            for listener in listeners:
                listener.remove(intent_id(*words[1:]))
            return
        kind = KINDS[words[2]]
        try:
            intent = wire.decode(record.data, kind)
        except (msgspec.MsgspecError, ValueError) as error:
            self._metrics.common.bad_input(kind.__name__, "unreadable")
            log.warning("unreadable message", subject=record.subject, error=str(error))
            return
        for listener in listeners:
            listener.put(intent, record.seq)
