"""Brings the fact stream in step with the state, batch by batch."""

import time
from collections.abc import Callable

import structlog

from dunlin.bus.base import Bus, BusError, BusUnavailable, Message, WrongLastSequence
from dunlin.service.pulse import Pulse
from dunlin_watcher.backoff import Backoff
from dunlin_watcher.core import step, take
from dunlin_watcher.events import Published, Refused
from dunlin_watcher.metrics import WatcherMetrics
from dunlin_watcher.state import Address, State

log = structlog.get_logger(__name__)


class Publisher:
    """
    Publishes what is dirty, for ever; every message by compare-and-set on its subject.

    So a watcher that lost its lease without noticing cannot overwrite what its successor wrote, and
    a message whose acknowledgement was lost is not stored twice.
    """

    def __init__(
        self,
        bus: Bus,
        state: State,
        pulse: Pulse,
        metrics: WatcherMetrics,
        *,
        batch: int,
        may_publish: Callable[[], bool],
    ) -> None:
        self.bus = bus
        self.state = state
        self.pulse = pulse
        self.metrics = metrics
        self.batch = batch
        self.may_publish = may_publish
        self.backoff = Backoff(0.05, 2.0)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            pulse = self.pulse.take()
            chosen = take(self.state, self.batch) if self.may_publish() else []
            if not chosen:
                await pulse.wait()
                continue
            if await self._publish(chosen):
                self.backoff.reset()
            else:
                await self.backoff.wait()
            self.pulse.beat()

    async def _publish(self, chosen: list[tuple[Address, Message]]) -> bool:
        """Every message was answered, well or not."""
        try:
            results = await self.bus.publish_many([message for _address, message in chosen])
        except BusError as error:
            results = [error] * len(chosen)
        answered = True
        for (address, message), result in zip(chosen, results, strict=True):
            if isinstance(result, int):
                self._stored(address, message, result)
            else:
                answered = await self._refused(address, message, result) and answered
        return answered

    def _stored(self, address: Address, message: Message, seq: int) -> None:
        taken = self.state.inflight.get(address)
        if taken is not None and taken[1].since_ms:
            waited_s = time.time() - taken[1].since_ms / 1000
            self.metrics.publish_latency.labels(address[0]).observe(max(0.0, waited_s))
        what = "fact" if message.data else "tombstone"
        self.metrics.published.labels(address[0], what).inc()
        step(self.state, Published(address, seq))

    async def _refused(self, address: Address, message: Message, error: BusError) -> bool:
        if isinstance(error, WrongLastSequence):
            self.metrics.refused.labels("sequence").inc()
            try:
                last = await self.bus.get_last(message.subject)
            except BusError as failed:
                error = failed
            else:
                step(self.state, Refused(address, last, looked_up=True))
                return True
        reason = "unavailable" if isinstance(error, BusUnavailable) else "error"
        self.metrics.refused.labels(reason).inc()
        log.warning("not published", subject=message.subject, error=str(error))
        step(self.state, Refused(address))
        return False
