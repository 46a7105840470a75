"""The JetStream API: requests as JSON, errors as exceptions, streams as Dunlin wants them."""

import base64
import time
from datetime import datetime
from typing import Any

import msgspec

from dunlin import subjects
from dunlin.bus.base import (
    HISTORY_PER_SUBJECT,
    BusError,
    BusUnavailable,
    Record,
)
from dunlin.bus.nats_client import FastClient, header_value, nats_errors

DUPLICATE_WINDOW_S = 120
NS = 1_000_000_000
LEASES_STREAM = f"KV_{subjects.LEASES_BUCKET}"
LEASES_PREFIX = f"$KV.{subjects.LEASES_BUCKET}"

STREAM_NAME_IN_USE = 10058
STREAM_NOT_FOUND = 10059
NO_MESSAGE = 10037
WRONG_LAST_SEQUENCE = (10071, 10164)


class ApiFailure(BusError):
    """JetStream refused; `code` is its err_code."""

    def __init__(self, what: str, code: int, description: str) -> None:
        super().__init__(f"{what}: {description} ({code})")
        self.code = code


class StreamInfo(msgspec.Struct, frozen=True):
    """One life of a stream, and its newest sequence."""

    name: str
    created: str
    last_seq: int
    config: dict[str, Any]

    @property
    def epoch(self) -> str:
        """Names this life."""
        return f"{self.name}@{self.created}"


class Api:
    """`$JS.API`, one call a method."""

    def __init__(self, client: FastClient, timeout_s: float) -> None:
        self.client = client
        self.timeout_s = timeout_s

    async def call(self, operation: str, payload: Any = None) -> dict[str, Any]:
        """
        One request.

        Raises:
            BusUnavailable: no server, no JetStream, or no answer in time.
            ApiFailure: JetStream says no.
        """
        deadline = time.monotonic() + self.timeout_s
        await self.client.until_connected(operation, self.timeout_s)
        body = b"" if payload is None else msgspec.json.encode(payload)
        try:
            reply = await self.client.request(
                f"$JS.API.{operation}", body, timeout=max(0.05, deadline - time.monotonic())
            )
        except nats_errors.NoRespondersError:
            raise BusUnavailable(f"{operation}: JetStream does not answer") from None
        except (TimeoutError, nats_errors.Error, OSError) as error:
            raise BusUnavailable(f"{operation}: {type(error).__name__} {error}") from error
        answer: dict[str, Any] = msgspec.json.decode(reply.data)
        if "error" in answer:
            raise _failure(operation, answer["error"])
        return answer

    async def stream_info(self, stream: str) -> StreamInfo | None:
        """The stream, None if it does not exist."""
        try:
            answer = await self.call(f"STREAM.INFO.{stream}")
        except ApiFailure as error:
            if error.code == STREAM_NOT_FOUND:
                return None
            raise
        return StreamInfo(stream, answer["created"], answer["state"]["last_seq"], answer["config"])

    async def need_stream(self, stream: str) -> StreamInfo:
        """The stream; BusUnavailable if it does not exist."""
        info = await self.stream_info(stream)
        if info is None:
            raise BusUnavailable(f"{stream}: no such stream")
        return info

    async def ensure_stream(self, config: dict[str, Any]) -> None:
        """Make the stream, or change it where it differs in what `config` says."""
        name = config["name"]
        info = await self.stream_info(name)
        if info is None:
            try:
                await self.call(f"STREAM.CREATE.{name}", config)
            except ApiFailure as error:
                # Somebody else was faster, with another first sequence.
                if error.code != STREAM_NAME_IN_USE:
                    raise
            return
        fixed = {"first_seq", "storage"}
        wanted = {key: value for key, value in config.items() if key not in fixed}
        if any(info.config.get(key) != value for key, value in wanted.items()):
            await self.call(f"STREAM.UPDATE.{name}", {**info.config, **wanted})

    async def last_message(self, stream: str, subject: str) -> Record | None:
        """The newest message of a subject, from the stream's leader."""
        message = await self._last(stream, subject)
        if message is None:
            return None
        return Record(
            message["subject"],
            base64.b64decode(message.get("data", "")),
            message["seq"],
            unix_ms(message["time"]),
        )

    async def seq_if_last(self, stream: str, subject: str, msg_id: str) -> int | None:
        """Sequence of the newest message of a subject if it carries this msg_id, else None."""
        message = await self._last(stream, subject)
        if message is None:
            return None
        found = header_value(base64.b64decode(message.get("hdrs", "")), b"Nats-Msg-Id")
        return message["seq"] if found == msg_id.encode() else None

    async def _last(self, stream: str, subject: str) -> dict[str, Any] | None:
        try:
            answer = await self.call(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except ApiFailure as error:
            if error.code == NO_MESSAGE:
                return None
            if error.code == STREAM_NOT_FOUND:
                raise BusUnavailable(f"{stream}: no such stream") from error
            raise
        message: dict[str, Any] = answer["message"]
        return message


def _failure(operation: str, error: dict[str, Any]) -> BusError:
    code, description = error.get("err_code", 0), error.get("description", "")
    # 503: JetStream without a leader or out of resources for now; 429: too many requests.
    if error.get("code") in (503, 429):
        return BusUnavailable(f"{operation}: {description} ({code})")
    return ApiFailure(operation, code, description)


def unix_ms(timestamp: str) -> int:
    """Unix milliseconds of an RFC 3339 time with up to nanoseconds."""
    return int(datetime.fromisoformat(timestamp).timestamp() * 1000)


def stream_configs(replicas: int) -> list[dict[str, Any]]:
    """
    What `ensure_streams` makes: the streams of `dunlin.subjects` and the bucket of leases.

    No message has a time to live: a tombstone that expired would bring an older message of its
    subject back as the newest. `dunlin.bus.janitor` purges old tombstones with all before them.
    """
    common = {
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "num_replicas": replicas,
        "allow_direct": True,
        "duplicate_window": DUPLICATE_WINDOW_S * NS,
    }
    streams: list[dict[str, Any]] = [
        {
            **common,
            "name": name,
            "subjects": list(filters),
            "max_msgs_per_subject": HISTORY_PER_SUBJECT[name],
        }
        for name, filters in subjects.STREAM_SUBJECTS.items()
    ]
    bucket = {
        **common,
        "name": LEASES_STREAM,
        "subjects": [f"{LEASES_PREFIX}.>"],
        "max_msgs_per_subject": 1,
        "discard": "new",
        "deny_delete": True,
        "allow_rollup_hdrs": True,
        # Revisions are fencing numbers: a bucket made anew must go on above the old ones. Fewer
        # than 1,000 renewals a second on average leave it behind the clock.
        "first_seq": int(time.time() * 1000),
    }
    return [*streams, bucket]
