"""The bus on NATS JetStream."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from dunlin import subjects
from dunlin.bus.base import (
    Batch,
    BusError,
    BusUnavailable,
    Handler,
    Message,
    NoResponder,
    Record,
    Subscription,
    WrongLastSequence,
)
from dunlin.bus.nats_api import LEASES_PREFIX, LEASES_STREAM, Api, stream_configs
from dunlin.bus.nats_client import FastClient, Options, backoff_s, nats_errors
from dunlin.bus.nats_follow import Follow
from dunlin.bus.nats_publish import NoStream, Publisher
from dunlin.bus.serving import answer

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as NatsSubscription

log = logging.getLogger("dunlin.bus")

SERVING_MAX = 256
"""Requests of one `serve` under way at a time; more wait in the connection."""

STOP_S = 1.0


class _Served:
    """One `serve`."""

    def __init__(self, client: FastClient, handler: Handler) -> None:
        self._client = client
        self._handler = handler
        self._room = asyncio.Semaphore(SERVING_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._subscription: NatsSubscription | None = None

    async def start(self, subject: str, queue: str) -> None:
        """Subscribe; the server knows of it when this returns."""
        self._subscription = await self._client.subscribe(subject, queue, cb=self._take)
        await self._client.settled()

    async def _take(self, message: "Msg") -> None:
        await self._room.acquire()
        task = asyncio.get_running_loop().create_task(self._answer(message))
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._room.release()

    async def _answer(self, message: "Msg") -> None:
        reply = await answer(self._handler, message.subject, message.data)
        if not message.reply:
            return
        try:
            await self._client.publish(message.reply, reply)
        except (nats_errors.Error, OSError) as error:
            log.warning("reply lost subject=%s: %s", message.subject, error)

    async def stop(self) -> None:
        """End it; requests under way have a second."""
        if self._subscription is not None and not self._client.is_closed:
            with suppress(nats_errors.Error, OSError):
                await self._subscription.unsubscribe()
        self._subscription = None
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_S)
        for task in tuple(self._tasks):
            task.cancel()


class NatsBus:
    """`Bus` on one connection to NATS."""

    def __init__(self, client: FastClient, options: Options) -> None:
        """Use `NatsBus.connect`."""
        self.client = client
        self.options = options
        self.api = Api(client, options.timeout_s)
        self._publisher = Publisher(client, options.timeout_s)
        self._served: list[_Served] = []
        self._ensured = False
        self._ensuring = asyncio.Lock()

    @classmethod
    async def connect(cls, options: Options, *, wait_s: float | None = None) -> "NatsBus":
        """
        Connect; goes on trying for `wait_s` (None: for ever), and later after each loss for ever.

        Raises:
            BusUnavailable: not connected within `wait_s`.
        """
        client = FastClient()
        await client.start(options, wait_s)
        bus = cls(client, options)
        await bus._publisher.start()
        return bus

    @property
    def connected(self) -> bool:
        """There is a live connection now."""
        return self.client.is_connected

    async def ensure_streams(self) -> None:
        """Make what is missing, now and whenever this bus finds a stream gone."""
        async with self._ensuring:
            for config in stream_configs(self.options.replicas):
                if self.options.make_streams:
                    await self.api.ensure_stream(config)
                else:
                    await self._await_stream(config["name"])
            self._ensured = True

    async def _await_stream(self, stream: str) -> None:
        """Streams are another service's to make; until it has, there is nothing to do."""
        attempt = 0
        while await self.api.stream_info(stream) is None:
            if attempt % 10 == 0:
                log.info("waiting for a service that makes streams stream=%s", stream)
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1

    async def _missing(self) -> None:
        """Something noticed that a stream is not there."""
        if self._ensured:
            log.warning("a stream is gone: making it again")
            await self.ensure_streams()

    async def epoch(self, stream: str) -> str:
        """Names this life of the stream."""
        return (await self.api.need_stream(stream)).epoch

    async def last_seq(self, stream: str) -> int:
        """Sequence of the newest message, 0 if there is none."""
        return (await self.api.need_stream(stream)).last_seq

    async def publish(self, message: Message) -> int:
        """Store one message; its sequence."""
        (result,) = await self.publish_many([message])
        if isinstance(result, BusError):
            raise result
        return result

    async def publish_many(self, messages: Sequence[Message]) -> list[int | BusError]:
        """Pipelined; one result a message."""
        results = await self._publisher.send(messages)
        homeless = [i for i, result in enumerate(results) if isinstance(result, NoStream)]
        if homeless and self._ensured:
            # Certainly not stored, so it may be sent again.
            await self._missing()
            again = await self._publisher.send([messages[i] for i in homeless])
            for i, result in zip(homeless, again, strict=True):
                results[i] = result
        for i, result in enumerate(results):
            if isinstance(result, WrongLastSequence):
                results[i] = await self._unless_ours(messages[i], result)
        return results

    async def _unless_ours(self, message: Message, refusal: WrongLastSequence) -> int | BusError:
        """
        The sequence of an earlier try of this very message, where that is what stands in its way.

        nats-server compares sequences before it looks for duplicates.
        """
        if message.msg_id is None or message.expected_seq is None:
            return refusal
        stream = self._stream_of(message.subject)
        try:
            seq = await self.api.seq_if_last(stream, message.subject, message.msg_id)
        except BusError as error:
            return error
        return refusal if seq is None else seq

    @staticmethod
    def _stream_of(subject: str) -> str:
        is_lease = subject.startswith(LEASES_PREFIX)
        return LEASES_STREAM if is_lease else subjects.stream_of(subject)

    async def get_last(self, subject: str) -> Record | None:
        """The newest message of one subject."""
        return await self.api.last_message(subjects.stream_of(subject), subject)

    async def purge(self, stream: str, subject: str, *, up_to_seq: int | None = None) -> None:
        """Forget a subject, or what it holds up to a sequence."""
        body: dict[str, object] = {"filter": subject}
        if up_to_seq is not None:
            body["seq"] = up_to_seq + 1
        await self.api.call(f"STREAM.PURGE.{stream}", body)

    def follow(
        self, stream: str, filters: Sequence[str] = (), *, history: bool = False
    ) -> AsyncGenerator[Batch, None]:
        """The state now, then every change."""
        reader = Follow(
            self.client,
            self.api,
            self.options,
            stream,
            filters,
            history=history,
            missing=self._missing,
        )
        return reader.batches()

    async def request(self, subject: str, data: bytes, *, timeout_s: float) -> bytes:
        """One request, one reply."""
        await self.client.until_connected(subject, timeout_s)
        try:
            reply = await self.client.request(subject, data, timeout=timeout_s)
        except nats_errors.NoRespondersError:
            raise NoResponder(f"{subject}: nobody serves it") from None
        except nats_errors.TimeoutError:
            raise BusUnavailable(f"{subject}: no reply within {timeout_s} s") from None
        except (nats_errors.Error, OSError) as error:
            raise BusUnavailable(f"{subject}: {type(error).__name__} {error}") from error
        return reply.data

    async def serve(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Answer requests on `subject`."""
        served = _Served(self.client, handler)
        await self.client.until_connected(subject, self.options.timeout_s)
        try:
            await served.start(subject, queue)
        except (nats_errors.Error, OSError) as error:
            raise BusUnavailable(f"{subject}: {type(error).__name__} {error}") from error
        self._served.append(served)
        return served

    async def close(self) -> None:
        """Flush and disconnect; idempotent."""
        if self.client.is_closed:
            return
        for served in self._served:
            await served.stop()
        self._publisher.stop()
        if self.client.is_connected:
            with suppress(nats_errors.Error, OSError):
                await self.client.flush(1)
        await self.client.leave()
