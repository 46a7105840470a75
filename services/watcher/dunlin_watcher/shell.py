"""
The watcher's loop: follow the stream always; list, watch and publish while holding the lease.

All tasks of one event loop share one `State`; whoever changes it beats the pulse.
"""

import asyncio
import time
from collections.abc import Callable

import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Batch, Bus, BusError, Lease, Leases, Message, Subscription
from dunlin.events.facts import Meta, SyncFact
from dunlin.service.pulse import Pulse
from dunlin_watcher.backoff import Backoff
from dunlin_watcher.config import Settings
from dunlin_watcher.core import step
from dunlin_watcher.events import Event, LeadershipChanged, StreamRead
from dunlin_watcher.kinds import KINDS
from dunlin_watcher.metrics import WatcherMetrics
from dunlin_watcher.publisher import Publisher
from dunlin_watcher.reflector import Api, Reflector
from dunlin_watcher.state import State
from dunlin_watcher.status import Status
from dunlin_watcher.sync import SUBJECT, SyncService

log = structlog.get_logger(__name__)

LEASE = "watcher"
STREAM_CHUNK = 512


class Watcher:
    """One replica."""

    def __init__(
        self,
        bus: Bus,
        leases: Leases,
        api: Api,
        settings: Settings,
        metrics: WatcherMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bus = bus
        self.leases = leases
        self.api = api
        self.settings = settings
        self.metrics = metrics
        self.clock = clock
        self.state = State()
        self.pulse = Pulse()
        self.statuses = {name: Status() for name in KINDS}
        self.lease: Lease | None = None
        self.synced_epoch = ""
        self.reflectors: dict[str, Reflector] = {}
        self.sync = SyncService(bus, api, self.state, self.pulse, self._is_served)
        self.publisher = Publisher(
            bus,
            self.state,
            self.pulse,
            metrics,
            batch=settings.publish_batch,
            may_publish=self.leads,
        )

    # --- what others ask ---

    def leads(self) -> bool:
        """We are the active one, at this very moment."""
        return self.lease is not None and self.clock() < self.lease.expires_at

    def not_ready(self) -> str | None:
        """Why not, for people; a standby that has read the stream is ready."""
        if not self.state.stream_known:
            return "still reading the facts"
        if self.lease is None:
            return None
        if not self.state.complete:
            waiting = [name for name, kind in self.state.kinds.items() if not kind.complete]
            errors = {self.statuses[name].last_error for name in waiting} - {""}
            return f"still listing {', '.join(waiting)}" + "".join(f"; {e}" for e in sorted(errors))
        if self.synced_epoch != self.state.epoch:
            return "still publishing the first list"
        return None

    # --- the tasks ---

    async def follow(self) -> None:
        """Read the fact stream for ever: what it holds, who else writes it, when it begins anew."""
        filters = [subjects.facts_of(kind) for kind in KINDS]
        async for batch in self.bus.follow(subjects.FACTS_STREAM, filters):
            await self._read(batch)

    async def _read(self, batch: Batch) -> None:
        """In chunks, so that probes and leases never wait for 4,096 records."""
        for start in range(0, max(1, len(batch.records)), STREAM_CHUNK):
            chunk = batch.records[start : start + STREAM_CHUNK]
            last = start + STREAM_CHUNK >= len(batch.records)
            event = StreamRead(
                batch.epoch,
                chunk,
                reset=batch.reset and start == 0,
                caught_up=batch.caught_up and last,
            )
            self._emit(event)
            await asyncio.sleep(0)

    async def lead(self) -> None:
        """Wait for the lease; while it is held, list, watch and publish; for ever."""
        backoff = Backoff(0.2, 2.0)
        while True:
            try:
                lease = await self.leases.acquire(
                    LEASE, self.settings.replica, ttl_s=self.settings.lease_ttl_s
                )
            except BusError as error:
                log.warning("no lease", error=str(error))
                await backoff.wait()
                continue
            backoff.reset()
            if lease is None:
                await asyncio.sleep(min(0.5, self.settings.lease_ttl_s / 4))
                continue
            await self._hold(lease)

    async def _hold(self, lease: Lease) -> None:
        log.info("active", fencing=lease.fencing)
        self.lease = lease
        self.synced_epoch = ""
        self.metrics.leading.set(1)
        self._emit(LeadershipChanged())
        work = asyncio.create_task(self._work(), name="lead")
        try:
            await self._renew(work)
        finally:
            work.cancel()
            await asyncio.wait([work])
            self.metrics.leading.set(0)
            lost, self.lease = self.lease, None
            self._emit(LeadershipChanged())
            log.info("standby")
            if lost is not None:
                await self._give_back(lost)
        if not work.cancelled() and work.exception() is not None:
            raise work.exception() or AssertionError

    async def _renew(self, work: asyncio.Task[None]) -> None:
        """
        Until somebody else has the lease, or the work failed.

        One that has run out is mostly still ours: nothing is published until it is renewed
        (`leads`), but 150,000 Pods are not listed again because the bus or this process was busy.
        """
        pause_s = self.settings.lease_ttl_s / 5
        while not work.done():
            await asyncio.wait([work], timeout=pause_s)
            assert self.lease is not None
            try:
                async with asyncio.timeout(self.settings.lease_ttl_s):
                    renewed = await self.leases.renew(self.lease, ttl_s=self.settings.lease_ttl_s)
            except (BusError, TimeoutError) as error:
                if not self.leads():
                    log.warning("lease not renewed in time", error=str(error))
                continue
            if renewed is None:
                log.warning("lease lost")
                self.lease = None
                return
            paused, self.lease = not self.leads(), renewed
            if paused:
                self.pulse.beat()

    async def _give_back(self, lease: Lease) -> None:
        try:
            async with asyncio.timeout(1.0):
                await self.leases.release(lease)
        except (BusError, TimeoutError) as error:
            log.info("lease not given back", error=str(error))

    async def _work(self) -> None:
        service = await self._serve_sync()
        try:
            async with asyncio.TaskGroup() as tasks:
                for name, kind in KINDS.items():
                    reflector = Reflector(
                        kind, self.api, self._emit, self.metrics, self.statuses[name]
                    )
                    self.reflectors[name] = reflector
                    tasks.create_task(reflector.run(), name=f"reflect-{name}")
                tasks.create_task(self.publisher.run(), name="publish")
                tasks.create_task(self._claim_sync(), name="claim-sync")
        finally:
            await service.stop()
            for status in self.statuses.values():
                status.watching = False

    def _is_served(self, kind: str) -> None:
        """A request to sync has listed this kind."""
        if (reflector := self.reflectors.get(kind)) is not None:
            reflector.look_again()

    async def _serve_sync(self) -> Subscription:
        backoff = Backoff(0.1, 2.0)
        while True:
            try:
                return await self.bus.serve(SUBJECT, self.sync.handle, queue="watcher")
            except BusError as error:
                log.warning("cannot serve requests yet", subject=SUBJECT, error=str(error))
                await backoff.wait()

    async def _claim_sync(self) -> None:
        """Say "all of the cluster is in the log before this", once in each epoch."""
        backoff = Backoff(0.1, 5.0)
        while True:
            pulse = self.pulse.take()
            state = self.state
            due = state.complete and state.stream_known and self.synced_epoch != state.epoch
            if not (due and state.settled and self.leads()):
                await pulse.wait()
                continue
            epoch = state.epoch
            fact = SyncFact(name="watcher", meta=Meta(observed_ms=int(time.time() * 1000)))
            try:
                await self.bus.publish(Message(fact.subject, wire.encode(fact)))
            except BusError as error:
                log.warning("not published", subject=fact.subject, error=str(error))
                await backoff.wait()
                continue
            backoff.reset()
            if epoch == await self._epoch():
                self.synced_epoch = epoch
                self.pulse.beat()
                log.info("in sync", epoch=epoch, objects=self.counts())

    async def _epoch(self) -> str:
        try:
            return await self.bus.epoch(subjects.FACTS_STREAM)
        except BusError as error:
            log.warning("epoch unknown", error=str(error))
            return ""

    def counts(self) -> dict[str, int]:
        """Objects by kind."""
        return {name: kind.count for name, kind in self.state.kinds.items()}

    def _emit(self, event: Event) -> None:
        report = step(self.state, event)
        for word, text in report.bad:
            self.metrics.common.bad_input(report.kind, word)
            log.warning("bad input", kind=report.kind, error=text)
        for field, who in report.unsupported:
            self.metrics.common.unsupported(report.kind, field)
            log.info("not supported", object=who, field=field)
        self.pulse.beat()
