"""
Reading a stream without a gap or a repetition, whatever happens to connection, server or stream.

A `Follow` is a row of sessions. A session is one ephemeral push consumer with its own inbox; it
ends at the first sign of trouble (connection lost, a hole in the consumer's sequence, silence
longer than heartbeats allow, an advisory that consumer or stream is deleted), and the next one
begins after the last record that was handed out, or anew if the stream is another one.
"""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from dunlin.bus import stats
from dunlin.bus.base import BATCH_MAX, Batch, BusError, BusUnavailable, Record
from dunlin.bus.filters import reduce_filters
from dunlin.bus.nats_api import NS, Api, StreamInfo
from dunlin.bus.nats_client import (
    FastClient,
    Options,
    backoff_s,
    header_value,
    is_status,
    nats_errors,
)

log = logging.getLogger("dunlin.bus")

SILENCE_MIN_S = 3.0
INACTIVE_S = 30
ACK_TOKENS_MAX = 12


class Lost(BusError):
    """The session is over; the message is one word, for logs and metrics."""


@dataclass
class Cursor:
    """How far the reader has come, in which life of the stream."""

    epoch: str
    seq: int
    at: float


@dataclass(frozen=True, slots=True)
class Start:
    """Where a session begins: `seq` None is the state now (or all of it, for history)."""

    info: StreamInfo
    seq: int | None
    reset: bool


def delivery(reply: bytes) -> tuple[int, int, int, int]:
    """
    What the reply subject of a delivery says: stream sequence, consumer sequence, ns, pending.

    `$JS.ACK.[<domain>.<account>.]<stream>.<consumer>.<deliveries>.<the four>[.<random>]`.
    """
    tokens = reply.split(b".")
    last = len(tokens) - (len(tokens) == ACK_TOKENS_MAX)
    seq, position, stamp, pending = tokens[last - 4 : last]
    return int(seq), int(position), int(stamp), int(pending)


class Session:
    """One consumer: bytes arrive in `waiting` by `take`, leave as batches."""

    def __init__(self, client: FastClient, start: Start, silence_s: float) -> None:
        self.client = client
        self.start = start
        self.silence_s = silence_s
        self.waiting: deque[tuple[bytes, bytes, bytes, bytes | None]] = deque()
        self.wake = asyncio.Event()
        self.lost: str | None = None
        self.delivered = 0
        self.seq = 0 if start.seq is None else start.seq - 1
        self.caught_up = False
        self.reported = False
        self.nothing_pending = False

    def take(self, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        """The sink of the consumer's inbox."""
        self.waiting.append((subject, reply, data, headers))
        self.wake.set()

    def lose(self, reason: str) -> None:
        """End the session once what waits has been handed out."""
        self.lost = self.lost or reason
        self.wake.set()

    async def next(self) -> Batch | None:
        """
        Whatever waits, at most BATCH_MAX records; None if that was only bookkeeping.

        Raises:
            Lost: the session is over.
        """
        if not self.waiting and not self.nothing_pending:
            if self.lost:
                raise Lost(self.lost)
            self.wake.clear()
            try:
                async with asyncio.timeout(self.silence_s):
                    await self.wake.wait()
            except TimeoutError:
                raise Lost("silence") from None
        return await self._collect()

    async def _collect(self) -> Batch | None:
        records: list[Record] = []
        before = self.seq
        waiting = self.waiting
        if self.nothing_pending:
            self.nothing_pending = False
            self.caught_up = not waiting
        while waiting and len(records) < BATCH_MAX:
            subject, reply, data, headers = waiting.popleft()
            if is_status(headers):
                assert headers is not None
                await self._control(reply, headers)
                continue
            seq, position, stamp, pending = delivery(reply)
            if position != self.delivered + 1:
                # Hand out what was whole, then end.
                waiting.clear()
                self.lose("hole")
                break
            self.delivered = position
            self.seq = seq
            self.caught_up = pending == 0
            records.append(Record(subject.decode(), data, seq, stamp // 1_000_000))
        return self._batch(records, before)

    def _batch(self, records: list[Record], before: int) -> Batch | None:
        if self.caught_up:
            # Whatever the stream held before the consumer was made is behind us.
            self.seq = max(self.seq, self.start.info.last_seq)
        idle = self.caught_up and not self.waiting
        if not records and self.seq == before and (self.reported or not idle):
            return None
        self.reported = idle
        return Batch(tuple(records), self.start.info.epoch, self.seq, caught_up=idle)

    async def _control(self, reply: bytes, headers: bytes) -> None:
        """Flow control: say that we are here. Heartbeat: compare notes."""
        if reply:
            await self._respond(reply)
            return
        stalled = header_value(headers, b"Nats-Consumer-Stalled")
        if stalled:
            await self._respond(stalled)
            return
        last = header_value(headers, b"Nats-Last-Consumer")
        if last is None:
            self.lose("refused")
            return
        if int(last) != self.delivered:
            self.lose("hole")
            return
        # Nothing is on its way: all that matches up to here has been delivered.
        self.caught_up = True
        self.seq = max(self.seq, int(header_value(headers, b"Nats-Last-Stream") or 0))

    async def _respond(self, subject: bytes) -> None:
        try:
            await self.client.publish(subject.decode(), b"")
        except (nats_errors.Error, OSError) as error:
            log.debug("flow control: %s", error)
            self.lose("disconnected")


class Follow:
    """See `Bus.follow`."""

    def __init__(
        self,
        client: FastClient,
        api: Api,
        options: Options,
        stream: str,
        filters: Sequence[str],
        *,
        history: bool,
        missing: Callable[[], Any],
    ) -> None:
        """`missing`: awaited when the stream does not exist; may make it."""
        self.client = client
        self.api = api
        self.options = options
        self.stream = stream
        self.filters = reduce_filters(filters)
        self.history = history
        self.missing = missing
        self.cursor: Cursor | None = None

    async def batches(self) -> AsyncGenerator[Batch, None]:
        """For ever; ends with BusUnavailable when the connection is closed for good."""
        attempt = 0
        while True:
            try:
                async with self._session() as session:
                    reset = session.start.reset
                    while True:
                        batch = await session.next()
                        self._seen_alive()
                        if batch is None:
                            continue
                        attempt = 0
                        self.cursor = Cursor(batch.epoch, batch.seq, time.monotonic())
                        yield Batch(
                            batch.records, batch.epoch, batch.seq, batch.caught_up, reset=reset
                        )
                        reset = False
            except Lost as error:
                stats.RESUMES[self.stream, str(error)] += 1
                log.info("stream reader resumes stream=%s reason=%s", self.stream, error)
            except BusError as error:
                if self.client.is_closed:
                    raise BusUnavailable(f"{self.stream}: the connection is closed") from error
                if attempt % 10 == 0:
                    log.info("stream reader waits stream=%s: %s", self.stream, error)
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1

    def _seen_alive(self) -> None:
        """The reader is with the stream, be it that nothing happens there."""
        if self.cursor is not None:
            self.cursor.at = time.monotonic()

    @asynccontextmanager
    async def _session(self) -> AsyncGenerator[Session, None]:
        start = await self._start()
        silence_s = max(SILENCE_MIN_S, 3 * self.options.heartbeat_s)
        session = Session(self.client, start, silence_s)
        name = f"dunlin-{secrets.token_hex(8)}"
        inbox = self.client.new_inbox()

        def disconnected() -> None:
            session.lose("disconnected")

        def deleted(_subject: bytes, _reply: bytes, _data: bytes, _headers: bytes | None) -> None:
            session.lose("deleted")

        self.client.on_disconnect.add(disconnected)
        removes = []
        try:
            removes.append(await self.client.add_sink(inbox, session.take))
            for kind in (f"STREAM.DELETED.{self.stream}", f"CONSUMER.DELETED.{self.stream}.{name}"):
                removes += [await self.client.add_sink(f"$JS.EVENT.ADVISORY.{kind}", deleted)]
            await self._create(session, name, inbox)
            yield session
        finally:
            self.client.on_disconnect.discard(disconnected)
            for remove in removes:
                remove()

    async def _start(self) -> Start:
        """Where to go on, judged by the stream that is there now."""
        info = await self.api.stream_info(self.stream)
        if info is None:
            await self.missing()
            info = await self.api.need_stream(self.stream)
        cursor = self.cursor
        if cursor is None:
            return Start(info, None, reset=False)
        # Longer away than tombstones are sure to be kept, or a stream that lost its end.
        stale = time.monotonic() - cursor.at > self.options.resync_after_s
        if cursor.epoch != info.epoch or cursor.seq > info.last_seq or stale:
            return Start(info, None, reset=True)
        return Start(info, cursor.seq + 1, reset=False)

    async def _create(self, session: Session, name: str, inbox: str) -> None:
        start = session.start
        config: dict[str, Any] = {
            "name": name,
            "deliver_subject": inbox,
            "ack_policy": "none",
            "max_deliver": 1,
            "replay_policy": "instant",
            "flow_control": True,
            "idle_heartbeat": int(self.options.heartbeat_s * NS),
            "inactive_threshold": INACTIVE_S * NS,
            "mem_storage": True,
            "num_replicas": 1,
        }
        if self.filters:
            config["filter_subjects"] = list(self.filters)
        if start.seq is not None:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": start.seq}
        elif self.history:
            config["deliver_policy"] = "all"
        else:
            config["deliver_policy"] = "last_per_subject"
            # It needs a filter: all of them, where none is given.
            config.setdefault("filter_subjects", [">"])
        answer = await self.api.call(
            f"CONSUMER.CREATE.{self.stream}.{name}",
            {"stream_name": self.stream, "config": config, "action": "create"},
        )
        now = await self.api.need_stream(self.stream)
        if now.epoch != start.info.epoch:
            raise Lost("replaced")
        session.nothing_pending = answer.get("num_pending", 0) == 0
