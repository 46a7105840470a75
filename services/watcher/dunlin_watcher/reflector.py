"""
One kind: list it, watch it, for ever.

    list ── complete ──> watch ── ends ──> watch again from the last version
      ^                    │
      └── expired, garbage ┘        every repetition waits for its back-off, every wait is jittered
"""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Protocol

import msgspec
import structlog

from dunlin import wire
from dunlin_watcher import kube
from dunlin_watcher.adapters.errors import (
    ApiError,
    ExpiredError,
    GarbageError,
    NotServedError,
)
from dunlin_watcher.adapters.kubernetes import error_of_event
from dunlin_watcher.backoff import Backoff
from dunlin_watcher.events import Bookmark, Event, Gone, ListEnded, ListStarted, Seen
from dunlin_watcher.kinds import Kind
from dunlin_watcher.metrics import WatcherMetrics
from dunlin_watcher.status import Status

log = structlog.get_logger(__name__)

WATCH_MIN_S, WATCH_MAX_S = 240, 480
"""timeoutSeconds of a watch is drawn between these, so that watches do not end together."""
STEADY_S = 5.0
"""A watch that lasted so long was a success: the back-off begins anew."""
ABSENT_RETRY_S = 10.0
"""How long until a kind that the server does not have is asked for again, unless `look_again`."""

_OBJECT = msgspec.json.Decoder(kube.Object)


class Api(Protocol):
    """What a reflector needs of `dunlin_watcher.adapters.kubernetes.KubernetesApi`."""

    def pages(self, kind: Kind) -> AsyncIterator[kube.List]:
        """A complete list, page by page."""

    def metadata(self, kind: Kind) -> AsyncIterator[kube.MetadataList]:
        """A complete list of metadata, page by page."""

    def watch(
        self, kind: Kind, version: str, timeout_s: int
    ) -> AsyncGenerator[list[kube.WatchEvent], None]:
        """What happens after `version`."""


class Reflector:
    """Feeds the events of one kind to `emit`, in order."""

    def __init__(
        self,
        kind: Kind,
        api: Api,
        emit: Callable[[Event], None],
        metrics: WatcherMetrics,
        status: Status,
        *,
        backoff: Backoff | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind = kind
        self.api = api
        self.emit = emit
        self.metrics = metrics
        self.status = status
        self.backoff = backoff or Backoff()
        self.clock = clock
        self._wanted = asyncio.Event()

    def look_again(self) -> None:
        """Somebody saw that the server has a kind that it did not have: list it now."""
        if self.status.absent:
            self._wanted.set()

    async def run(self) -> None:
        """For ever."""
        reason = "start"
        while True:
            self.metrics.relists.labels(self.kind.name, reason).inc()
            self.status.relists += 1
            try:
                version = await self._list()
                reason = await self._watch(version)
                await self.backoff.wait()
            except NotServedError as error:
                reason = "absent"
                await self._absent(error)
            except ApiError as error:
                reason = error.reason
                await self._failed("list", error)

    async def _list(self) -> str:
        """The version that the list is of."""
        self.emit(ListStarted(self.kind.name))
        version = ""
        async for page in self.api.pages(self.kind):
            self._heard()
            now_ms = _now_ms()
            for raw in page.items or ():
                self.emit(Seen(self.kind.name, raw, now_ms))
            version = page.metadata.resource_version
        self.emit(ListEnded(self.kind.name, version))
        self.status.absent = False
        log.info("listed", kind=self.kind.name, resource_version=version)
        return version

    async def _absent(self, error: NotServedError) -> None:
        """An optional kind that the server does not have: an empty list, asked for again later."""
        if not self.kind.optional:
            await self._failed("list", error)
            return
        if not self.status.absent:
            log.info("not served by this API server", kind=self.kind.name)
        self.status.absent = True
        self._heard()
        self.emit(ListEnded(self.kind.name, ""))
        self._wanted.clear()
        delay_s = random.uniform(0.8, 1.2) * ABSENT_RETRY_S  # noqa: S311 - spreads load
        async with asyncio.TaskGroup() as tasks:
            woken = tasks.create_task(self._wanted.wait())
            slept = tasks.create_task(self.backoff.wait(delay_s))
            await asyncio.wait((woken, slept), return_when=asyncio.FIRST_COMPLETED)
            woken.cancel()
            slept.cancel()

    async def _watch(self, version: str) -> str:
        """Watch until a list is needed again; returns why."""
        while True:
            started = self.clock()
            failure: ApiError | None = None
            try:
                async with aclosing(self._follow(version)) as versions:
                    async for seen in versions:
                        version = seen
            except ApiError as error:
                failure = error
            self.status.watching = False
            if self.clock() - started >= STEADY_S:
                self.backoff.reset()
            if isinstance(failure, (ExpiredError, GarbageError, NotServedError)):
                self._note("watch", failure)
                return failure.reason
            self.status.watch_restarts += 1
            self.metrics.watch_restarts.labels(
                self.kind.name, failure.reason if failure else "ended"
            ).inc()
            if failure is not None:
                await self._failed("watch", failure)
            else:
                await self.backoff.wait()

    async def _follow(self, version: str) -> AsyncGenerator[str, None]:
        """One watch; yields the version after each batch of events."""
        timeout_s = random.randint(WATCH_MIN_S, WATCH_MAX_S)  # noqa: S311 - spreads load
        self.status.watching = True
        async with aclosing(self.api.watch(self.kind, version, timeout_s)) as watch:
            async for events in watch:
                self._heard()
                now_ms = _now_ms()
                for event in events:
                    version = self._take(event, now_ms) or version
                self.emit(Bookmark(self.kind.name, version))
                yield version

    def _take(self, event: kube.WatchEvent, now_ms: int) -> str:
        """One event; returns its version, "" if it has none."""
        self.metrics.events.labels(self.kind.name, event_label(event.type)).inc()
        match event.type:
            case "ADDED" | "MODIFIED":
                self.emit(Seen(self.kind.name, event.object, now_ms))
            case "DELETED":
                self.emit(Gone(self.kind.name, event.object, now_ms))
            case "BOOKMARK":
                pass
            case "ERROR":
                raise error_of_event(self.kind, event)
            case _:
                raise GarbageError(f"watch of {self.kind.path}: unknown event type {event.type!r}")
        return self._version(event)

    def _version(self, event: kube.WatchEvent) -> str:
        try:
            version = wire.read(_OBJECT, event.object).metadata.resource_version
        except msgspec.DecodeError as error:
            raise GarbageError(f"watch of {self.kind.path}: {event.type}: {error}") from error
        return version if isinstance(version, str) else ""

    def _heard(self) -> None:
        self.status.heard_at = self.clock()

    def _note(self, what: str, error: ApiError) -> None:
        self.status.last_error = str(error)
        self.status.last_error_ms = _now_ms()
        self.metrics.api_errors.labels(self.kind.name, what, error.reason).inc()
        if isinstance(error, GarbageError):
            self.metrics.common.bad_input(self.kind.name, "garbage")
        log.warning("API", what=what, kind=self.kind.name, reason=error.reason, error=str(error))

    async def _failed(self, what: str, error: ApiError) -> None:
        self._note(what, error)
        await self.backoff.wait(error.retry_after_s)


EVENT_TYPES = frozenset({"ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"})


def event_label(event_type: str) -> str:
    """A label of bounded number for a type from outside."""
    return event_type if event_type in EVENT_TYPES else "unknown"


def _now_ms() -> int:
    return int(time.time() * 1000)
