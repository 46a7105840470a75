"""The loops of the metrics service: three streams to follow, switches to poll."""

import asyncio
import time
from typing import Protocol

import structlog

from dunlin import subjects
from dunlin.bus.base import Batch, Bus
from dunlin_metrics.adapters.flowctl import FlowctlError, resolve
from dunlin_metrics.config import Settings
from dunlin_metrics.core import step
from dunlin_metrics.counters import Counters, Switches
from dunlin_metrics.events import Event, Polled, StreamRead, Tick
from dunlin_metrics.metrics import OwnMetrics
from dunlin_metrics.state import State

log = structlog.get_logger(__name__)

CHUNK = 512
STREAMS = {
    subjects.FACTS_STREAM: [subjects.facts_of(kind) for kind in ("node", "pod", "switch")],
    subjects.INTENTS_STREAM: [],
    subjects.STATE_STREAM: [f"{subjects.PREFIX}.applied.>"],
}
"""What is followed of each stream; [] is everything."""


class Reader(Protocol):
    """What the shell needs of `dunlin_metrics.adapters.flowctl.FlowctlClient`."""

    async def switches(self, url: str) -> Switches:
        """Every switch as one replica sees it."""

    async def counters(self, url: str, node: str) -> Counters:
        """The counters of one switch."""


class Shell:
    """One replica."""

    def __init__(self, bus: Bus, reader: Reader, settings: Settings, metrics: OwnMetrics) -> None:
        self.bus = bus
        self.reader = reader
        self.settings = settings
        self.metrics = metrics
        self.state = State()
        self._failing: dict[str, str] = {}

    def not_ready(self) -> str | None:
        """Why not, for people. Without flowctl there is still much to show."""
        missing = STREAMS.keys() - self.state.caught_up
        return f"still reading {', '.join(sorted(missing))}" if missing else None

    async def follow(self, stream: str) -> None:
        """Read one stream for ever."""
        async for batch in self.bus.follow(stream, STREAMS[stream]):
            await self._read(stream, batch)

    async def _read(self, stream: str, batch: Batch) -> None:
        for start in range(0, max(1, len(batch.records)), CHUNK):
            last = start + CHUNK >= len(batch.records)
            event = StreamRead(
                stream,
                batch.records[start : start + CHUNK],
                reset=batch.reset and start == 0,
                caught_up=batch.caught_up and last,
            )
            self.take(event)
            await asyncio.sleep(0)

    def take(self, event: Event) -> None:
        """Take one event in, and show what it led to."""
        outcome = step(self.state, event)
        for kind, text in outcome.bad:
            self.metrics.common.bad_input(kind, "record")
            log.warning("bad input", kind=kind, error=text)
        for node, latency_ms in outcome.latencies_ms:
            self.metrics.programming.observe(latency_ms / 1000)
            self.metrics.last_programming.labels(node).set(latency_ms / 1000)

    async def poll(self) -> None:
        """Read all switches for ever; each round begins one interval after the last began."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + self.settings.poll_interval_s
            await self.poll_once()
            self.take(Tick(_now_ms() - int(self.settings.retention_s * 1000)))
            await asyncio.sleep(max(0.05, due - loop.time()))

    async def poll_once(self) -> None:
        """One round: ask every replica what it is connected to, then for the counters."""
        urls = await resolve(self.settings.flowctl_urls)
        owners: dict[str, str] = {}
        answers = await asyncio.gather(*map(self._switches, urls))
        for url, switches in zip(urls, answers, strict=True):
            for switch in switches.items:
                if switch.peer and (switch.node not in owners or switch.role == "master"):
                    owners[switch.node] = url
        room = asyncio.Semaphore(self.settings.polls_max)
        await asyncio.gather(*(self._poll(url, node, room) for node, url in owners.items()))

    async def _switches(self, url: str) -> Switches:
        try:
            found = await self.reader.switches(url)
        except FlowctlError as error:
            self._failed(url, error)
            return Switches()
        self._worked(url)
        return found

    async def _poll(self, url: str, node: str, room: asyncio.Semaphore) -> None:
        async with room:
            try:
                counters = await self.reader.counters(url, node)
            except FlowctlError as error:
                self._failed(f"{url} {node}", error)
                return
        self._worked(f"{url} {node}")
        self.metrics.polls.labels("ok").inc()
        self.take(Polled(counters, _now_ms()))

    def _failed(self, what: str, error: FlowctlError) -> None:
        """Counted each time, logged when it is new."""
        self.metrics.polls.labels(error.reason).inc()
        if error.reason == "garbage":
            self.metrics.common.bad_input("counters", "garbage")
        if self._failing.get(what) != error.reason:
            log.warning("flowctl", what=what, error=str(error))
        self._failing[what] = error.reason

    def _worked(self, what: str) -> None:
        if self._failing.pop(what, None) is not None:
            log.info("flowctl answers again", what=what)


def _now_ms() -> int:
    return int(time.time() * 1000)
