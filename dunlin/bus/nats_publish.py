"""Publishing to JetStream: pipelined, every message matched with its acknowledgement."""

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from dunlin import wire
from dunlin.bus.base import BusError, BusUnavailable, Message, WrongLastSequence
from dunlin.bus.nats_api import WRONG_LAST_SEQUENCE, ApiFailure
from dunlin.bus.nats_client import FastClient, is_status, nats_errors

WINDOW = 1024
"""Messages without acknowledgement at most; JetStream refuses beyond 10,000 a stream."""


class _Error(msgspec.Struct, frozen=True):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Ack(msgspec.Struct, frozen=True):
    seq: int = 0
    error: _Error | None = None


LONGER_S = 1 / 2000
"""How much longer a retry may come for each message of a batch."""

_DECODER = msgspec.json.Decoder(_Ack)


class NoStream(BusUnavailable):
    """No stream takes the subject: the message was certainly not stored."""


class AckLost(BusUnavailable):
    """Whether the message was stored is not known."""


def outcome(message: Message, data: bytes, headers: bytes | None) -> int | BusError:
    """What an acknowledgement says: the sequence or the error."""
    if is_status(headers):
        return NoStream(f"{message.subject}: no stream takes it")
    try:
        ack = wire.read(_DECODER, data)
    except msgspec.DecodeError as error:
        return BusError(f"{message.subject}: acknowledgement is not JetStream's: {error}")
    refusal = ack.error
    if refusal is None:
        return ack.seq
    if refusal.err_code in WRONG_LAST_SEQUENCE:
        actual = refusal.description.rpartition(":")[2].strip()
        expected = message.expected_seq or 0
        return WrongLastSequence(
            message.subject, expected, int(actual) if actual.isdigit() else None
        )
    if refusal.code in (503, 429):
        return BusUnavailable(f"{message.subject}: {refusal.description} ({refusal.err_code})")
    return ApiFailure(message.subject, refusal.err_code, refusal.description)


def headers_of(message: Message) -> dict[str, str] | None:
    """NATS headers of a message, None where it needs none."""
    headers = dict(message.headers)
    if message.msg_id is not None:
        headers["Nats-Msg-Id"] = message.msg_id
    if message.expected_seq is not None:
        headers["Nats-Expected-Last-Subject-Sequence"] = str(message.expected_seq)
    return headers or None


class _Flight:
    """Messages on their way; `results` fill in any order."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages
        self.results: list[int | BusError | None] = [None] * len(messages)
        self.open: dict[bytes, int] = {}
        self.target = 0
        self.reached = asyncio.Event()

    def settle(self, token: bytes, result: int | BusError) -> None:
        index = self.open.pop(token)
        self.results[index] = result
        if len(self.open) <= self.target:
            self.reached.set()


class Publisher:
    """Sends messages of one connection; one inbox for all acknowledgements."""

    def __init__(self, client: FastClient, timeout_s: float) -> None:
        self.client = client
        self.timeout_s = timeout_s
        self._tokens = itertools.count()
        self._flights: dict[bytes, _Flight] = {}
        self._inbox = client.new_inbox()
        self._remove: Callable[[], None] | None = None

    async def start(self) -> None:
        """Subscribe to the acknowledgements."""
        self._remove = await self.client.add_sink(f"{self._inbox}.*", self._acknowledged)
        self.client.on_disconnect.add(self._lost)

    async def send(self, messages: Sequence[Message]) -> list[int | BusError]:
        """
        Publish in order; one result a message.

        A message with `msg_id` whose acknowledgement was lost is sent again while there is time
        (the server stores it once); another one gives `AckLost`.
        """
        deadline = time.monotonic() + self.timeout_s + len(messages) * LONGER_S
        results: list[Any] = await self._attempt(messages, deadline)
        while time.monotonic() < deadline:
            again = [
                index
                for index, result in enumerate(results)
                if isinstance(result, AckLost) and messages[index].msg_id is not None
            ]
            if not again:
                break
            retried = await self._attempt([messages[index] for index in again], deadline)
            for index, result in zip(again, retried, strict=True):
                results[index] = result
        return results

    async def _attempt(self, messages: Sequence[Message], deadline: float) -> list[int | BusError]:
        flight = _Flight(messages)
        try:
            for index, message in enumerate(messages):
                if len(flight.open) >= WINDOW:
                    await self._drain(flight, WINDOW // 2)
                await self._send(flight, index, message, deadline)
            await self._drain(flight, 0)
        finally:
            for token in flight.open:
                self._flights.pop(token, None)
        return [
            AckLost(f"{message.subject}: no acknowledgement") if result is None else result
            for message, result in zip(messages, flight.results, strict=True)
        ]

    async def _drain(self, flight: _Flight, target: int) -> None:
        """Wait until at most `target` are open; if that takes too long, the open ones are lost."""
        flight.target = target
        if len(flight.open) <= target:
            return
        flight.reached.clear()
        try:
            async with asyncio.timeout(self.timeout_s):
                await flight.reached.wait()
        except TimeoutError:
            self._give_up(flight, "no acknowledgement in time")

    async def _send(self, flight: _Flight, index: int, message: Message, deadline: float) -> None:
        token = b"%d" % next(self._tokens)
        try:
            left = max(0.0, deadline - time.monotonic())
            await self.client.until_connected(message.subject, left)
            flight.open[token] = index
            self._flights[token] = flight
            await self.client.publish(
                message.subject,
                message.data,
                f"{self._inbox}.{token.decode()}",
                headers_of(message),
            )
        except BusUnavailable as error:
            flight.results[index] = error
        except nats_errors.MaxPayloadError:
            self._settle(
                token, BusError(f"{message.subject}: {len(message.data)} octets are too many")
            )
        except (nats_errors.Error, OSError, ValueError) as error:
            self._settle(token, AckLost(f"{message.subject}: {type(error).__name__} {error}"))

    def _settle(self, token: bytes, result: int | BusError) -> None:
        flight = self._flights.pop(token, None)
        if flight is not None:
            flight.settle(token, result)

    def _acknowledged(
        self, subject: bytes, _reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        token = subject[len(self._inbox) + 1 :]
        flight = self._flights.get(token)
        if flight is not None:
            message = flight.messages[flight.open[token]]
            self._settle(token, outcome(message, data, headers))

    def _give_up(self, flight: _Flight, why: str) -> None:
        for token, index in list(flight.open.items()):
            self._settle(token, AckLost(f"{flight.messages[index].subject}: {why}"))

    def _lost(self) -> None:
        """The connection broke: no acknowledgement of what was sent will come."""
        for flight in set(self._flights.values()):
            self._give_up(flight, "connection lost before the acknowledgement")

    def stop(self) -> None:
        """End the subscription; what is open is lost."""
        self._lost()
        self.client.on_disconnect.discard(self._lost)
        if self._remove is not None:
            self._remove()
