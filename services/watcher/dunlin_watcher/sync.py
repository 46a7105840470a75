"""rpc.watcher.sync: answered once all that the Kubernetes API holds now is published."""

import asyncio
from collections.abc import Callable
from functools import partial

import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Bus
from dunlin.events.rpc import Failure, Synced, SyncRequest
from dunlin.service.pulse import Pulse
from dunlin_watcher import core
from dunlin_watcher.adapters.errors import ApiError, GarbageError, NotServedError
from dunlin_watcher.backoff import Backoff
from dunlin_watcher.kinds import KINDS, Kind, describe
from dunlin_watcher.normalise import UnreadableError, identity_of
from dunlin_watcher.reflector import Api
from dunlin_watcher.state import State

log = structlog.get_logger(__name__)

SUBJECT = subjects.rpc("watcher", "sync")
NAMED_MAX = 5

Listing = tuple[str, dict[str, tuple[str, str]]]
"""(version of the list, key -> (uid, resourceVersion))"""


class SyncService:
    """Answers `SyncRequest`s."""

    def __init__(
        self, bus: Bus, api: Api, state: State, pulse: Pulse, served: Callable[[str], None]
    ) -> None:
        """`served` is told each kind that the server has: one may have been absent till now."""
        self.served = served
        self.bus = bus
        self.api = api
        self.state = state
        self.pulse = pulse
        self.waiting_for = ""

    async def handle(self, _subject: str, data: bytes) -> bytes:
        """One request."""
        request = wire.decode(data, SyncRequest) if data else SyncRequest()
        self.waiting_for = "the list of metadata"
        try:
            async with asyncio.timeout(request.timeout_ms / 1000):
                return wire.encode(await self._sync())
        except TimeoutError:
            reason = f"not in sync within {request.timeout_ms} ms: waiting for {self.waiting_for}"
            return wire.encode(Failure(reason=reason, retry=True))
        except ApiError as error:
            return wire.encode(Failure(reason=f"Kubernetes API: {error}", retry=True))

    async def _sync(self) -> Synced:
        kinds = list(KINDS.values())
        listings = await asyncio.gather(*(self._listing(kind) for kind in kinds))
        for kind, listing in zip(kinds, listings, strict=True):
            await self._covered(kind, listing)
        ticket = self.state.ticket
        self.waiting_for = "the fact stream"
        await self._until(lambda: self.state.stream_known and self.state.oldest_ticket > ticket)
        while True:
            epoch = await self.bus.epoch(subjects.FACTS_STREAM)
            seq = await self.bus.last_seq(subjects.FACTS_STREAM)
            if epoch == self.state.epoch == await self.bus.epoch(subjects.FACTS_STREAM):
                return Synced(fact_seq=seq, fact_epoch=epoch)
            # A new stream: everything is published again, wait for that.
            await self._until(partial(self._settled_in, epoch))

    def _settled_in(self, epoch: str) -> bool:
        state = self.state
        return state.epoch == epoch and state.stream_known and state.settled

    async def _covered(self, kind: Kind, listing: Listing) -> None:
        """Wait until the state covers the listing; list again where versions cannot be compared."""
        backoff = Backoff(0.5, 4.0)
        while behind := self._behind(kind, listing):
            named = ", ".join(describe(kind.name, key) for key in behind[:NAMED_MAX])
            self.waiting_for = f"{len(behind)} {kind.name} to be seen: {named}"
            try:
                async with asyncio.timeout(backoff.next_s()):
                    await self._until(partial(self._caught_up, kind, listing))
            except TimeoutError:
                if not listing[0].isdecimal():
                    listing = await self._listing(kind)

    def _caught_up(self, kind: Kind, listing: Listing) -> bool:
        return not self._behind(kind, listing)

    def _behind(self, kind: Kind, listing: Listing) -> list[str]:
        if not self.state.kinds[kind.name].complete:
            return ["(first list)"]
        return core.missing(self.state, kind.name, listing[1], listing[0])

    async def _listing(self, kind: Kind) -> Listing:
        found: dict[str, tuple[str, str]] = {}
        version = ""
        try:
            async for page in self.api.metadata(kind):
                for obj in page.items or ():
                    identity = identity_of(kind.name, obj.metadata)
                    found[identity.key] = (identity.uid, identity.resource_version)
                version = page.metadata.resource_version
        except NotServedError:
            if not kind.optional:
                raise
        except UnreadableError as error:
            raise GarbageError(f"list of {kind.path}: {error}") from error
        else:
            self.served(kind.name)
        return version, found

    async def _until(self, reached: Callable[[], bool]) -> None:
        while True:
            pulse = self.pulse.take()
            if reached():
                return
            await pulse.wait()
