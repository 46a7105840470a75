"""One OpenFlow 1.5 session: frames in and out, requests by xid, bundles, keep-alive."""

import asyncio
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import structlog

from dunlin.openflow import codec, messages
from dunlin.openflow.flow import Meter
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.encode import COMMIT, COMMIT_XID, OPEN, SHARED_XID, Bundle
from dunlin_flowctl.level import TIMER_S
from dunlin_flowctl.metrics import FlowctlMetrics

log = structlog.get_logger(__name__)
M = TypeVar("M", bound=messages.Message)
T = TypeVar("T")

WRITE_BUFFER_MAX = 1 << 18
READ_MAX = 1 << 18
ECHOES_MISSED_MAX = 3
ECHO = codec.encode_echo_request(0)
"""Every question is the same: ryu's encoder takes longer than all the rest of it."""


class SessionClosed(Exception):
    """The session is over; `reason` is a short fixed word for metrics."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class Refusal(Exception):
    """The switch answered a request with an error."""

    def __init__(self, error: messages.ErrorMessage) -> None:
        super().__init__(error.name)
        self.error = error


@dataclass(slots=True)
class CommitResult:
    """`applied`: the switch has committed the bundle. `errors`: of its messages, by xid."""

    applied: bool
    errors: list[messages.ErrorMessage]


@dataclass(slots=True)
class _Commit:
    done: asyncio.Future[bool]
    errors: list[messages.ErrorMessage] = field(default_factory=list)


@dataclass(slots=True)
class _Replies:
    """What has come for one request, and who waits for the next."""

    ready: deque[messages.Message] = field(default_factory=deque)
    wanted: asyncio.Future[messages.Message] | None = None

    def put(self, message: messages.Message) -> None:
        """One more."""
        if self.wanted is not None and not self.wanted.done():
            self.wanted.set_result(message)
        else:
            self.ready.append(message)


Unasked = Callable[[messages.Message], None]


class Session:
    """
    A connection to one switch. `run` reads until it ends; every other method may be used meanwhile.

    `unasked` gets what the switch says by itself. `peer`: for people.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        peer: str,
        settings: FlowctlSettings,
        metrics: FlowctlMetrics,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self.peer = peer
        self._settings = settings
        self._metrics = metrics
        self._xids = itertools.cycle(range(1, SHARED_XID))
        self._buffer = bytearray()
        self._waiting: dict[int, _Replies] = {}
        self._owed: set[asyncio.Future[Any]] = set()
        self._commit: _Commit | None = None
        self._asking: asyncio.TimerHandle | None = None
        self._turn = asyncio.Lock()
        self._heard = self._said = time.monotonic()
        self._closed: asyncio.Future[SessionClosed] = asyncio.get_running_loop().create_future()
        self.unasked: Unasked = lambda _message: None
        self.dpid = 0
        self.role = "equal"
        self.connected_at = time.time()
        writer.transport.set_write_buffer_limits(high=WRITE_BUFFER_MAX)

    @property
    def closed(self) -> bool:
        """It is over."""
        return self._closed.done()

    async def wait_closed(self) -> SessionClosed:
        """Until it is over; why."""
        return await asyncio.shield(self._closed)

    def on_closed(self, call: Callable[[], None]) -> None:
        """Call it once when the session is over."""
        self._closed.add_done_callback(lambda _: call())

    def close(self, reason: str, detail: str = "") -> None:
        """End it; what waits for the switch gets `SessionClosed`. Idempotent."""
        if not self._closed.done():
            error = SessionClosed(reason, detail)
            self._closed.set_result(error)
            if self._asking is not None:
                self._asking.cancel()
            for future in self._owed:
                if not future.done():
                    future.set_exception(error)
            self._writer.transport.abort()

    # --- reading ----------------------------------------------------------------------------------

    async def handshake(self) -> None:
        """
        Say hello, learn the dpid, and set what the switch sends unasked.

        Raises:
            SessionClosed: the peer speaks no OpenFlow 1.5, or not in time.
        """
        async with asyncio.timeout(self._settings.handshake_timeout_s):
            await self.write(codec.encode_hello(next(self._xids)))
            hello = await self._read()
            if not isinstance(hello, messages.Hello):
                raise SessionClosed("no_hello", f"first message is {type(hello).__name__}")
            if codec.VERSION not in hello.versions:
                raise SessionClosed("version", f"peer speaks {sorted(hello.versions)}, not 1.5 (6)")
            await self.write(codec.encode_features_request(next(self._xids)))
            while not isinstance(reply := await self._read(), messages.FeaturesReply):
                await self._handle(reply)
            if reply.auxiliary_id:
                raise SessionClosed("auxiliary", "auxiliary connections are not used")
            self.dpid = reply.dpid
            await self.write(
                codec.encode_set_async(
                    packet_in=True, flow_removed=True, port_status=False, xid=next(self._xids)
                ),
                codec.encode_packet_in_format(next(self._xids)),
            )

    async def run(self) -> SessionClosed:
        """Read until the end of the session; returns why it ended."""
        self._keep_alive()
        try:
            while True:
                message = await self._read()
                await self._handle(message)
        except SessionClosed as error:
            self.close(error.reason, str(error))
        finally:
            self.close("cancelled")
        return self._closed.result()

    async def _read(self) -> messages.Message:
        try:
            while (frame := self._frame()) is None:
                data = await self._reader.read(READ_MAX)
                if not data:
                    cut = "truncated" if self._buffer else "eof"
                    raise SessionClosed(cut, "the peer closed the connection")
                self._metrics.read.inc(len(data))
                self._buffer += data
            self._heard = time.monotonic()
            return codec.decode(frame)
        except codec.OpenFlowError as error:
            raise SessionClosed("malformed", str(error)) from error
        except OSError as error:
            raise SessionClosed("lost", str(error)) from error

    def _frame(self) -> bytes | None:
        """The next message, if all of it has been read. Raises OpenFlowError."""
        buffer = self._buffer
        if len(buffer) < codec.HEADER_LEN:
            return None
        length = codec.parse_header(bytes(buffer[: codec.HEADER_LEN])).length
        if len(buffer) < length:
            return None
        frame = bytes(buffer[:length])
        del buffer[:length]
        return frame

    async def _handle(self, message: messages.Message) -> None:
        waiting = self._waiting.get(message.xid)
        if isinstance(message, messages.EchoRequest):
            await self.write(codec.encode_echo_reply(message.xid, message.payload))
        elif isinstance(message, messages.ErrorMessage) and message.xid >= SHARED_XID:
            self._bundle_error(message)
        elif isinstance(message, messages.BundleReply):
            if message.xid == COMMIT_XID and self._commit and not self._commit.done.done():
                self._commit.done.set_result(True)
        elif waiting is not None:
            waiting.put(message)
            if getattr(message, "more", False):
                # What is in the buffer is read without a turn of the loop: give others theirs.
                await asyncio.sleep(0)
        elif isinstance(message, messages.ErrorMessage):
            self._metrics.openflow_errors.labels("unattributed").inc()
            log.error("error from switch", peer=self.peer, error=message.name, xid=message.xid)
        else:
            self.unasked(message)

    def _bundle_error(self, error: messages.ErrorMessage) -> None:
        commit = self._commit
        if commit is None or commit.done.done():
            log.warning("late error from switch", peer=self.peer, error=error.name, xid=error.xid)
            return
        commit.errors.append(error)
        if error.xid == COMMIT_XID:
            commit.done.set_result(False)

    def _keep_alive(self) -> None:
        """
        Ask after silence; three intervals without a byte end the session.

        Also when we are silent: a switch that sends a long dump hears nothing from us meanwhile,
        its own question waits behind the dump, and it would take us for dead. A timer and not a
        task, and not before it can matter: of thousands of sessions this is all that happens.
        """
        if self.closed:
            return
        interval, now = self._settings.echo_interval_s, time.monotonic()
        silence = now - self._heard
        if silence > ECHOES_MISSED_MAX * interval + interval / 2:
            self.close("dead", f"nothing heard for {silence:.1f} s")
            return
        quiet = now - self._said
        # Asked once, a switch that is merely slow needs no second question to answer first.
        ask = quiet > interval or (silence > interval and self._said <= self._heard + interval)
        if ask and not self._unsent():
            self._said = now
            self._writer.write(ECHO)
        due_s = min(self._heard, self._said) + interval - now
        loop = asyncio.get_running_loop()
        self._asking = loop.call_later(max(due_s, interval / 2) + TIMER_S, self._keep_alive)

    def _unsent(self) -> int:
        """Bytes that wait for the switch to read."""
        return self._writer.transport.get_write_buffer_size()

    # --- writing ----------------------------------------------------------------------------------

    async def write(self, *parts: bytes) -> None:
        """
        Write; waits while the switch takes nothing.

        Raises:
            SessionClosed: it is over, or the switch took nothing for `write_timeout_s`.
        """
        for part in together(parts):
            if self.closed:
                raise self._closed.result()
            self._writer.write(part)
            self._said = time.monotonic()
            self._metrics.written.inc(len(part))
            if not self._unsent():
                continue
            try:
                async with asyncio.timeout(self._settings.write_timeout_s):
                    await self._writer.drain()
            except TimeoutError:
                self.close("stuck", "the switch does not read")
                raise self._closed.result() from None
            except OSError as error:
                self.close("lost", str(error))
                raise self._closed.result() from error

    def try_write(self, data: bytes) -> bool:
        """Write without waiting; False: nothing was written, for the switch is slow or gone."""
        if self.closed or self._unsent() > WRITE_BUFFER_MAX // 4:
            return False
        self._writer.write(data)
        self._metrics.written.inc(len(data))
        return True

    async def _or_closed(self, future: "asyncio.Future[T]", what: str) -> T:
        """The result, unless the session ends first or the switch owes it too long."""
        if self.closed and not future.done():
            raise self._closed.result()
        late = asyncio.get_running_loop().call_later(
            self._settings.reply_timeout_s, self.close, "no_reply", f"no reply to {what}"
        )
        self._owed.add(future)
        try:
            return await future
        finally:
            late.cancel()
            self._owed.discard(future)

    async def request(self, encode: Callable[[int], bytes], kind: type[M]) -> M:
        """
        One request, one reply of type `kind`.

        Raises:
            Refusal: an error message instead. SessionClosed: no answer, or another one.
        """
        async for message in self.replies(encode, kind):
            return message
        raise AssertionError("replies() yields at least once")

    async def replies(self, encode: Callable[[int], bytes], kind: type[M]) -> AsyncIterator[M]:
        """The parts of a multipart reply (or the one reply); raises as `request`."""
        xid = next(self._xids)
        replies = self._waiting[xid] = _Replies()
        try:
            await self.write(encode(xid))
            async for part in self._parts(replies, kind):
                yield part
        finally:
            del self._waiting[xid]

    async def ask(self, *questions: tuple[bytes, type[messages.Message]]) -> list[list[Any]]:
        """
        Several questions in one write; the parts of each one's answer. Raises as `request`.

        `questions`: encoded, with any xid, and what kind of message answers.
        """
        asked = [(next(self._xids), question, kind) for question, kind in questions]
        waiting = [self._waiting.setdefault(xid, _Replies()) for xid, _, _ in asked]
        try:
            await self.write(*(codec.again(question, xid) for xid, question, _ in asked))
            return [
                [part async for part in self._parts(replies, kind)]
                for replies, (_, _, kind) in zip(waiting, asked, strict=True)
            ]
        finally:
            for xid, _, _ in asked:
                del self._waiting[xid]

    async def _parts(self, replies: "_Replies", kind: type[M]) -> AsyncIterator[M]:
        more = True
        while more:
            message = await self._next(replies, kind.__name__)
            if isinstance(message, messages.ErrorMessage):
                raise Refusal(message)
            if not isinstance(message, kind):
                self.close("malformed", f"{type(message).__name__} instead of {kind.__name__}")
                raise self._closed.result()
            yield message
            more = getattr(message, "more", False)

    async def _next(self, replies: "_Replies", what: str) -> messages.Message:
        if replies.ready:
            return replies.ready.popleft()
        replies.wanted = asyncio.get_running_loop().create_future()
        return await self._or_closed(replies.wanted, what)

    async def commit(self, bundle: Bundle) -> CommitResult:
        """
        Write one bundle and wait until the switch has committed or refused it.

        Raises:
            SessionClosed: the session ended before: whether it was applied is unknown.
        """
        async with self._turn:
            while self._commit is not None:
                await asyncio.wait({self._commit.done})
            commit = self._commit = _Commit(asyncio.get_running_loop().create_future())
            try:
                await self.write(OPEN, *(segment.data for segment in bundle.segments), COMMIT)
                applied = await self._or_closed(commit.done, "commit")
            finally:
                self._commit = None
        return self._committed(commit, applied=applied)

    def try_commit(self, bundle: Bundle, done: Callable[[CommitResult], None]) -> bool:
        """
        As `commit` with a bundle whose `data` is ready, but without waiting for anything.

        `done` is called with the result, unless the session ends before. False: nothing was
        written, for the session is busy, slow or over.
        """
        busy = self._turn.locked() or self._commit is not None
        if busy or not bundle.data or not self.try_write(bundle.data):
            return False
        loop = asyncio.get_running_loop()
        self._said = time.monotonic()
        commit = self._commit = _Commit(loop.create_future())
        timeout_s = self._settings.reply_timeout_s
        late = loop.call_later(timeout_s, self.close, "no_reply", "no reply to commit")
        self._owed.add(commit.done)

        def answered(reply: asyncio.Future[bool]) -> None:
            late.cancel()
            self._owed.discard(reply)
            self._commit = None
            if not reply.cancelled() and reply.exception() is None:
                done(self._committed(commit, applied=reply.result()))

        commit.done.add_done_callback(answered)
        return True

    def _committed(self, commit: _Commit, *, applied: bool) -> CommitResult:
        self._metrics.bundle_results[applied].inc()
        return CommitResult(applied, commit.errors)

    async def set_meter(self, meter: Meter) -> None:
        """
        The meter is there from now on, as asked.

        Raises Refusal: the switch has none.
        """
        try:
            await self._meter("add", meter)
        except Refusal as refusal:
            if refusal.error.name != "OFPMMFC_METER_EXISTS":
                raise
            await self._meter("modify", meter)

    async def delete_meter(self, meter_id: int) -> None:
        """
        It is gone, if it was there, and with it every flow that names it.

        Raises Refusal: the switch has none.
        """
        await self.request(
            lambda xid: (
                codec.encode_meter_delete(meter_id, xid) + codec.encode_barrier_request(xid)
            ),
            messages.BarrierReply,
        )

    async def _meter(self, command: Literal["add", "modify"], meter: Meter) -> None:
        # A modification has no reply: a barrier of the same xid ends it, an error comes before.
        await self.request(
            lambda xid: (
                codec.encode_meter_mod(command, meter, xid) + codec.encode_barrier_request(xid)
            ),
            messages.BarrierReply,
        )

    async def set_role(self, role: codec.Role, generation_id: int) -> None:
        """Raises Refusal: the switch has seen a newer generation."""
        reply = await self.request(
            lambda xid: codec.encode_role_request(role, generation_id, xid), messages.RoleReply
        )
        self.role = reply.role

    async def become_slave(self) -> None:
        """Give up writing, without knowing the generation: the switch is asked for it."""
        reply = await self.request(
            lambda xid: codec.encode_role_request("nochange", 0, xid), messages.RoleReply
        )
        unset = 0xFFFF_FFFF_FFFF_FFFF
        generation = 0 if reply.generation_id == unset else reply.generation_id
        await self.set_role("slave", generation)


def together(parts: Iterable[bytes]) -> Iterator[bytes]:
    """Small neighbours as one: a system call and a packet of its own cost more than the copy."""
    waiting: list[bytes] = []
    size = 0
    for part in parts:
        if waiting and size + len(part) > WRITE_BUFFER_MAX:
            yield b"".join(waiting)
            waiting, size = [], 0
        waiting.append(part)
        size += len(part)
    if waiting:
        yield b"".join(waiting)
