"""
One replica writes to a switch at a time: claims by compare-and-set, OpenFlow's role as the fence.

A claim's sequence is the generation_id of its owner's mastership: a switch refuses whoever comes
with an older claim, whatever that one believes. So two owners do no harm, and an owner that hears
nothing of the bus goes on: nobody can have claimed the switch whom the switch would not prefer.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import (
    TOMBSTONE,
    Batch,
    Bus,
    BusError,
    Message,
    NoResponder,
    Record,
    Subscription,
    WrongLastSequence,
)
from dunlin_flowctl.core.owners import Claim, Owners
from dunlin_flowctl.level import TIMER_S, Signal

log = structlog.get_logger(__name__)

LOOK_S = 30.0
"""Everything that matters wakes who waits; this only bounds what was forgotten."""


class Heartbeat(msgspec.Struct, frozen=True):
    """Says that a replica lives; it is dead after `ttl_s` of silence."""

    ttl_s: float


class ClaimBody(msgspec.Struct, frozen=True):
    """Says whose a switch is."""

    replica: str


class Held:
    """A claim on a switch; `valid` must be true whenever something is written."""

    def __init__(self, owners: Owners, dpid: int, fencing: int) -> None:
        self._owners = owners
        self._dpid = dpid
        self.fencing = fencing

    @property
    def valid(self) -> bool:
        """Nobody else's claim has been read; true also while the bus is away."""
        claim = self._owners.ours(self._dpid)
        return claim is not None and claim.seq == self.fencing

    @property
    def certain(self) -> bool:
        """Valid, and the bus would have told us of another claim."""
        return self.valid and self._owners.hearing(time.monotonic())


class _Claims:
    """Claims that are published together."""

    sent: asyncio.Task[list[int | BusError]]

    def __init__(self) -> None:
        self.messages: list[Message] = []


class Ownership:
    """One replica among others: its heartbeats, its claims, and everybody else's."""

    def __init__(self, bus: Bus, replica: str, ttl_s: float) -> None:
        self._bus = bus
        self._ttl_s = ttl_s
        self.owners = Owners(replica, ttl_s)
        self._signals: dict[int, set[Signal]] = {}
        self._live: frozenset[str] = frozenset()
        self._caught_up = False
        self._epoch = ""
        self._claims: _Claims | None = None

    # --- what is known ----------------------------------------------------------------------------

    async def follow(self) -> None:
        """Read heartbeats and claims; for ever."""
        async for batch in self._bus.follow(subjects.OWNERS_STREAM):
            self._read(batch)

    def _read(self, batch: Batch) -> None:
        if batch.reset or batch.epoch != self._epoch:
            self.owners.forget()
            self._epoch = batch.epoch
            self._caught_up = False
            self._wake_all()
        for record in batch.records:
            try:
                self._record(record)
            except (msgspec.DecodeError, msgspec.ValidationError, ValueError) as error:
                log.warning("message left out", subject=record.subject, error=str(error))
        if batch.caught_up and not self._caught_up:
            self._caught_up = True
            self._wake_all()
        self._look_at_members()

    def _record(self, record: Record) -> None:
        _, what, name = subjects.split(record.subject)
        if what == "member" and record.is_tombstone:
            self.owners.left(name)
        elif what == "member":
            beat = wire.decode(record.data, Heartbeat)
            self.owners.heard(name, beat.ttl_s, time.monotonic())
        elif what == "switch":
            dpid = int(name, 16)
            replica = "" if record.is_tombstone else wire.decode(record.data, ClaimBody).replica
            if self.owners.note(dpid, Claim(replica, record.seq)):
                self._wake(dpid)

    def _look_at_members(self) -> None:
        live = self.owners.live(time.monotonic())
        if live != self._live:
            log.info("replicas", live=sorted(live), gone=sorted(self._live - live))
            self._live = live
            self._wake_all()

    def _wake(self, dpid: int) -> None:
        for signal in self._signals.get(dpid, ()):
            signal.notify()

    def _wake_all(self) -> None:
        for dpid in self._signals:
            self._wake(dpid)

    # --- what is said -----------------------------------------------------------------------------

    async def beat(self) -> None:
        """Heartbeats; for ever. Says goodbye when cancelled."""
        subject = subjects.owner_member(self.owners.replica)
        data = wire.encode(Heartbeat(self._ttl_s))
        try:
            while True:
                try:
                    async with asyncio.timeout(self._ttl_s):
                        await self._bus.publish(Message(subject, data))
                except (BusError, TimeoutError) as error:
                    log.warning("heartbeat not sent", error=str(error))
                await asyncio.sleep(self._ttl_s / 4)
        finally:
            await self._say(Message(subject, TOMBSTONE))

    async def watch(self) -> None:
        """
        Ask for who is silent, leave out who is dead, and answer who asks for us; for ever.

        The bus knows at once when a process has ended: nobody serves its subject any more. So its
        switches need not wait for the rest of its time to live.
        """
        subscription = await self._answer()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._ask_silent())
                tasks.create_task(self._leave_out_dead())
        finally:
            await subscription.stop()

    async def _ask_silent(self) -> None:
        while True:
            await _past(self.owners.until_suspect(time.monotonic()))
            await self.look_for_silent()

    async def _leave_out_dead(self) -> None:
        while True:
            await _past(self.owners.until_dead(time.monotonic()))
            self._look_at_members()

    async def look_for_silent(self) -> None:
        """Ask once for each replica that is silent; who is gone is not counted any more."""
        suspects = self.owners.suspects(time.monotonic())
        gone = await asyncio.gather(*map(self._is_gone, suspects))
        for (name, heard_at), is_gone in zip(suspects.items(), gone, strict=True):
            if is_gone and self.owners.heard_last(name) == heard_at:
                log.info("nobody answers for a silent replica", replica=name)
                self.owners.left(name)
                self._look_at_members()

    async def _answer(self) -> Subscription:
        async def here(_subject: str, _data: bytes) -> bytes:
            return b""

        subject = subjects.rpc("flowctl", "alive", self.owners.replica)
        while True:
            try:
                return await self._bus.serve(subject, here)
            except BusError as error:
                log.info("not served yet", subject=subject, error=str(error))
                await asyncio.sleep(self._ttl_s / 4)

    async def _is_gone(self, name: str) -> bool:
        """No process serves this replica's subject; False also where nobody can tell."""
        subject = subjects.rpc("flowctl", "alive", name)
        try:
            await self._bus.request(subject, b"", timeout_s=self._ttl_s / 4)
        except NoResponder:
            return True
        except BusError as error:
            log.debug("a silent replica did not answer", replica=name, error=str(error))
        return False

    async def _say(self, message: Message) -> bool:
        """Publish, or log why not: who reads it can do without."""
        try:
            async with asyncio.timeout(1):
                await self._bus.publish(message)
        except (BusError, TimeoutError) as error:
            log.info("not said", subject=message.subject, error=str(error))
            return False
        return True

    # --- claims -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def hold(
        self, dpid: int, wanted: Callable[[], bool], signal: Signal
    ) -> AsyncIterator[Held | None]:
        """
        Waits for the switch to be ours while `wanted`; None when it is not any more. Gives it back.

        `signal` is notified whenever a claim on the switch is read. Raises BusError: try again.
        """
        self._signals.setdefault(dpid, set()).add(signal)
        held: Held | None = None
        try:
            held = await self._wait(dpid, wanted, signal)
            yield held
        finally:
            self._signals[dpid].discard(signal)
            if not self._signals[dpid]:
                del self._signals[dpid]
            if held is not None and held.certain:
                subject = subjects.owner_switch(dpid)
                await self._say(Message(subject, TOMBSTONE, expected_seq=held.fencing))

    async def _wait(self, dpid: int, wanted: Callable[[], bool], signal: Signal) -> Held | None:
        since = time.monotonic()
        was: Claim | None = None
        while wanted():
            now = time.monotonic()
            if (claim := self.owners.claims.get(dpid)) != was:
                was, since = claim, now
            patience = self.owners.patience(dpid, self._live_now()) if self._caught_up else None
            if patience is None:
                await _pause(signal, LOOK_S)
                # Its owner may have died just now: the first choice has its time from here on.
                since = time.monotonic()
            elif since + patience > now:
                await _pause(signal, since + patience - now)
            elif (held := await self._claim(dpid)) is not None:
                return held
        return None

    def _live_now(self) -> frozenset[str]:
        return self.owners.live(time.monotonic())

    async def _claim(self, dpid: int) -> Held | None:
        """Ours by compare-and-set; without the bus only what was ours last."""
        owners = self.owners
        before = owners.claims.get(dpid)
        if not owners.hearing(time.monotonic()) and (mine := owners.ours(dpid)) is not None:
            return Held(owners, dpid, mine.seq)
        message = Message(
            subjects.owner_switch(dpid),
            wire.encode(ClaimBody(owners.replica)),
            expected_seq=before.seq if before is not None else 0,
        )
        try:
            seq = await self._publish(message)
        except WrongLastSequence:
            # The other's claim is on its way to us.
            await asyncio.sleep(0.05)
            return None
        owners.note(dpid, Claim(owners.replica, seq))
        return Held(owners, dpid, seq)

    async def _publish(self, claim: Message) -> int:
        """
        The claim's sequence. Claims of one turn of the loop go out together.

        So those of a dead replica's hundreds of switches are there before anybody serves one.
        """
        claims = self._claims
        if claims is None:
            claims = self._claims = _Claims()
            claims.sent = asyncio.create_task(self._publish_all(claims))
        number = len(claims.messages)
        claims.messages.append(claim)
        result = (await asyncio.shield(claims.sent))[number]
        if isinstance(result, BusError):
            raise result
        return result

    async def _publish_all(self, claims: _Claims) -> list[int | BusError]:
        self._claims = None
        return await self._bus.publish_many(claims.messages)


async def _past(seconds: float) -> None:
    """Sleep, and a little longer: a timer may be early by its resolution."""
    await asyncio.sleep(seconds + TIMER_S)


async def _pause(signal: Signal, timeout_s: float) -> None:
    """Until something moves, at most so long."""
    moved = False

    def looked() -> bool:
        nonlocal moved
        before, moved = moved, True
        return before

    await signal.wait_for(looked, timeout_s)
