"""
Desired intents -> the intent stream: only differences, by compare-and-set, tombstones last.

Used by ipam and planner. What stands in the stream is read all the time, so a restart, another
replica's write or a new stream all come down to the same thing: a difference between desired and
standing.
"""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Literal

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import (
    TOMBSTONE,
    Bus,
    BusError,
    BusUnavailable,
    Message,
    Record,
    WrongLastSequence,
)
from dunlin.events.intents import AnyIntent
from dunlin.events.state import Progress

log = structlog.get_logger(__name__)

CHUNK = 256
BACKOFF_S = (0.05, 0.1, 0.2, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Standing:
    """What the stream holds on a subject; `digest` None: nothing."""

    seq: int
    digest: bytes | None


@dataclass(frozen=True, slots=True)
class Watermark:
    """
    The facts that desired follows from.

    `complete`: they are all there is, so tombstones may go.
    """

    epoch: str
    seq: int
    complete: bool


@dataclass(frozen=True, slots=True)
class Role:
    """
    Who writes: `shard_of(subject)` says in which share of the work an intent is.

    `may_withdraw(subject)`: enough is known to say that this one is not wanted any more.
    `may_begin(subject)`: what must stand before an intent that does not stand yet does.
    `owned`: shards that may be written now; `held` (None: the same): also those whose lease was not
    renewed in time and that nobody else is known to have.
    """

    service: Literal["ipam", "planner"]
    replica: str
    shard_count: int
    shard_of: Callable[[str], int]
    owned: Callable[[], frozenset[int]]
    may_withdraw: Callable[[str], bool] = lambda _subject: True
    may_begin: Callable[[str], bool] = lambda _subject: True
    held: Callable[[], frozenset[int]] | None = None

    def ours(self) -> frozenset[int]:
        """The shards whose differences are to be remembered."""
        return (self.held or self.owned)()


def digest_of(intent: AnyIntent) -> bytes:
    """Of everything but `trigger_ms` and `change`: they say when and with what, not what."""
    data = wire.encode(msgspec.structs.replace(intent, trigger_ms=None, change=0))
    return hashlib.blake2b(data, digest_size=16).digest()


def digest_of_record(record: Record) -> bytes | None:
    """None for a tombstone; of something that is no intent a digest that no intent has."""
    if record.is_tombstone:
        return None
    try:
        intent: AnyIntent = wire.decode(record.data, AnyIntent)  # type: ignore[arg-type]
    except (msgspec.DecodeError, ValueError) as error:
        # Bad input, no bug of ours.
        log.error("bad intent in the stream", subject=record.subject, reason=str(error))  # noqa: TRY400
        return b""
    return digest_of(intent)


class IntentWriter:
    """
    Keeps the intents of one service in the stream equal to `desired`, in the owned shards.

    `held`: intents that may not begin yet; as long as there are some, nothing is claimed.
    `adrift`: shards that `desired` has differences of and whose lease was away when they were to be
    written: they stay pending, for the lease may be back before anybody asks, and are not claimed.
    Callers change `desired` by `want` and then `flush`; one caller at a time. `on_foreign` is
    called when somebody else changed what stands, so that the caller flushes.
    """

    def __init__(
        self, bus: Bus, filters: Sequence[str], role: Role, on_foreign: Callable[[], None]
    ) -> None:
        self._bus = bus
        self._filters = filters
        self._role = role
        self._on_foreign = on_foreign
        self.desired: dict[str, AnyIntent] = {}
        self.standing: dict[str, Standing] = {}
        self.pending: set[str] = set()
        self.epoch = ""
        self.seq = 0
        self.published = 0
        self.held: set[str] = set()
        self.adrift: set[int] = set()
        self._known = asyncio.Event()

    @property
    def caught_up(self) -> bool:
        """What stands is known."""
        return self._known.is_set()

    # --- what stands -----------------------------------------------------------------------------

    async def follow(self) -> None:
        """Read what stands, for ever."""
        async with aclosing(self._bus.follow(subjects.INTENTS_STREAM, self._filters)) as batches:
            async for batch in batches:
                if batch.reset:
                    self._known.clear()
                    self.standing.clear()
                    self.seq = 0
                self.epoch = batch.epoch
                for start in range(0, len(batch.records), CHUNK):
                    self._note_all(batch.records[start : start + CHUNK])
                    await asyncio.sleep(0)
                if batch.caught_up and not self._known.is_set():
                    self._known.set()
                    self.review(self._role.ours())
                    self._on_foreign()

    def _note_all(self, records: Iterable[Record]) -> None:
        foreign = False
        for record in records:
            if record.seq > self._seq_of(record.subject):
                self._note(record.subject, record.seq, digest_of_record(record))
                foreign = foreign or self._differs(record.subject)
        if foreign and self._known.is_set():
            self._on_foreign()

    def _note(self, subject: str, seq: int, digest: bytes | None) -> None:
        self.standing[subject] = Standing(seq, digest)
        self.seq = max(self.seq, seq)

    def _seq_of(self, subject: str) -> int:
        found = self.standing.get(subject)
        return found.seq if found else 0

    def _differs(self, subject: str) -> bool:
        """Ours to write, and not as desired; then it is pending."""
        if self._role.shard_of(subject) not in self._role.ours():
            return False
        intent = self.desired.get(subject)
        standing = self.standing.get(subject)
        if (digest_of(intent) if intent else None) == (standing.digest if standing else None):
            return False
        self.pending.add(subject)
        return True

    # --- what is desired -------------------------------------------------------------------------

    def want(self, changes: Mapping[str, AnyIntent | None]) -> None:
        """Desired from now on, by subject; None: it is to go."""
        for subject, intent in changes.items():
            if intent is None:
                self.desired.pop(subject, None)
            else:
                self.desired[subject] = intent
            self.pending.add(subject)

    def review(self, shards: frozenset[int]) -> None:
        """Compare these shards with what stands: they are newly ours, or the stream is new."""
        for subject in (*self.standing, *self.desired):
            if self._role.shard_of(subject) in shards:
                self.pending.add(subject)

    def forget(self, shards: frozenset[int]) -> None:
        """Somebody else's from now on: nothing of it is desired or withdrawn by us."""
        for subject in [s for s in self.desired if self._role.shard_of(s) in shards]:
            del self.desired[subject]
        self.pending = {s for s in self.pending if self._role.shard_of(s) not in shards}

    def start_over(self) -> None:
        """The fact stream is new: nothing is known of what is desired."""
        self.desired.clear()
        self.pending.clear()
        self.review(self._role.ours())

    def differs_any(self, some: Iterable[str]) -> bool:
        """One of these subjects is ours and stands otherwise than desired."""
        return any(self._differs(subject) for subject in some)

    def differs(self, which: Callable[[str], bool]) -> bool:
        """
        Something of ours stands otherwise than desired.

        `which`: the subjects that are looked at.
        """
        subjects_ = {*self.standing, *self.desired}
        return any(self._differs(subject) for subject in subjects_ if which(subject))

    # --- writing ---------------------------------------------------------------------------------

    async def write(self) -> None:
        """Write every pending upsert now, before what is wanted next; claims nothing."""
        attempt = 0
        while True:
            try:
                await self._known.wait()
                await self._write(complete=False)
            except BusUnavailable as error:
                log.warning("intents not written", error=str(error), pending=len(self.pending))
            else:
                return
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1

    async def flush(self, mark: Watermark, shards: frozenset[int]) -> bool:
        """
        Write every pending difference, tombstones only if `mark.complete`; then claim `mark`.

        `shards`: those that `desired` was computed for. Waits for as long as the bus is away.
        False: it was claimed for fewer shards (a lease was away for a moment), or something is
        held: the caller flushes again.
        """
        attempt = 0
        while True:
            try:
                await self._known.wait()
                epoch = self.epoch
                await self._write(complete=mark.complete)
                if self.caught_up and epoch == self.epoch:
                    owned = (shards & self._role.owned()) - self.adrift
                    if not self.held:
                        await self._claim(mark, owned, epoch)
                    return not self.held and owned == shards
            except BusUnavailable as error:
                log.warning("intents not written", error=str(error), pending=len(self.pending))
            await asyncio.sleep(BACKOFF_S[min(attempt, len(BACKOFF_S) - 1)])
            attempt += 1

    async def _write(self, *, complete: bool) -> None:
        """In rounds, until nothing is left: what somebody else overtook is looked at again."""
        wrote = True
        while wrote:
            wrote = False
            self.held.clear()
            self.adrift.clear()
            queue = sorted(self.pending)
            # A set never shrinks: one that held all of a cluster costs that with each look at it.
            self.pending = set(queue)
            for start in range(0, len(queue), CHUNK):
                todo = self._messages(queue[start : start + CHUNK], complete=complete)
                if todo:
                    wrote = True
                    results = await self._bus.publish_many([message for message, _ in todo])
                    for (message, digest), result in zip(todo, results, strict=True):
                        await self._settle(message.subject, result, digest)
                await asyncio.sleep(0)

    def _messages(
        self, queue: Sequence[str], *, complete: bool
    ) -> list[tuple[Message, bytes | None]]:
        """The differences among these subjects, with the digest that each will have."""
        owned = self._role.owned()
        todo: list[tuple[Message, bytes | None]] = []
        for subject in queue:
            intent = self.desired.get(subject)
            shard = self._role.shard_of(subject)
            if shard not in owned:
                self.adrift.add(shard)
                continue
            standing = self.standing.get(subject)
            standing_digest = standing.digest if standing else None
            if intent and standing_digest is None and not self._role.may_begin(subject):
                # Asked again and again for all of 5,000 switches: before anything that costs.
                self.held.add(subject)
                continue
            digest = digest_of(intent) if intent else None
            if digest == standing_digest:
                self.pending.discard(subject)
            elif intent is not None or (complete and self._role.may_withdraw(subject)):
                data = wire.encode(intent) if intent else TOMBSTONE
                todo.append((Message(subject, data, expected_seq=self._seq_of(subject)), digest))
        return todo

    async def _settle(self, subject: str, result: int | BusError, digest: bytes | None) -> None:
        match result:
            case int():
                if result > self._seq_of(subject):
                    self._note(subject, result, digest)
                self.published += 1
            case WrongLastSequence():
                await self._reread(subject)
            case error:
                raise error if isinstance(error, BusUnavailable) else BusUnavailable(str(error))

    async def _reread(self, subject: str) -> None:
        """Somebody else wrote it: see what stands, and let the next round decide."""
        record = await self._bus.get_last(subject)
        if record is None:
            self.standing.pop(subject, None)
        else:
            self._note(subject, record.seq, digest_of_record(record))
        log.info("intent written by somebody else", subject=subject)

    async def _claim(self, mark: Watermark, shards: frozenset[int], epoch: str) -> None:
        if not shards:
            return
        progress = Progress(
            service=self._role.service,
            replica=self._role.replica,
            shards=tuple(sorted(shards)),
            shard_count=self._role.shard_count,
            fact_epoch=mark.epoch,
            fact_seq=mark.seq,
            intent_epoch=epoch,
            intent_seq=self.seq,
            complete=mark.complete,
            at_ms=time.time_ns() // 1_000_000,
        )
        await self._bus.publish(Message(progress.subject, wire.encode(progress)))
