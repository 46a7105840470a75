"""`GET /v1/events`: facts and intents as they were published, as JSON lines."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncGenerator
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from dunlin import subjects
from dunlin.bus.base import Bus, Record

STREAMS = {"fact": subjects.FACTS_STREAM, "intent": subjects.INTENTS_STREAM}
LIMIT_MAX = 10_000
QUEUE_MAX = 10_000
"""A reader that lags by more events than this is cut off: it can ask again."""


def router(bus: Bus) -> APIRouter:
    """The route, for a service that may read both streams."""
    api = APIRouter(tags=["events"])

    @api.get("/v1/events", summary="Facts and intents as they were published")
    async def events(
        limit: Annotated[int, Query(ge=0, le=LIMIT_MAX)] = 50,
        follow: bool = False,  # noqa: FBT001, FBT002 - a query parameter
    ) -> StreamingResponse:
        """The latest `limit` events, oldest first; with `follow`, then each new one, for ever."""
        lines = event_lines(bus, limit=limit, follow=follow)
        return StreamingResponse(lines, media_type="application/x-ndjson")

    return api


async def event_lines(bus: Bus, *, limit: int, follow: bool) -> AsyncGenerator[bytes, None]:
    """JSON lines: time (RFC 3339), stream, seq, subject, deleted, data."""
    queue: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue(QUEUE_MAX)
    recent: dict[str, deque[dict[str, Any]]] = {name: deque(maxlen=limit) for name in STREAMS}
    ready = {name: asyncio.Event() for name in STREAMS}
    readers = [
        asyncio.create_task(_read(bus, name, recent[name], ready[name], queue)) for name in STREAMS
    ]
    try:
        await asyncio.gather(*(event.wait() for event in ready.values()))
        past = sorted((e for items in recent.values() for e in items), key=lambda e: str(e["time"]))
        for event in past[len(past) - limit :] if limit else ():
            yield _line(event)
        while follow:
            event_or_end = await queue.get()
            if event_or_end is None:
                return
            yield _line(event_or_end)
    finally:
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)


async def _read(
    bus: Bus,
    name: str,
    recent: "deque[dict[str, Any]]",
    ready: asyncio.Event,
    queue: "asyncio.Queue[dict[str, Any] | None]",
) -> None:
    async for batch in bus.follow(STREAMS[name], history=True):
        for record in batch.records:
            event = describe(name, record)
            if not ready.is_set():
                recent.append(event)
            elif queue.full():
                # Too slow: the last word it gets is the end.
                queue.get_nowait()
                queue.put_nowait(None)
                return
            else:
                queue.put_nowait(event)
        if batch.caught_up:
            ready.set()


def describe(name: str, record: Record) -> dict[str, Any]:
    """One event; `data` is null for a tombstone, and text where it does not parse."""
    when = datetime.fromtimestamp(record.time_ms / 1000, UTC)
    data: Any = None
    if not record.is_tombstone:
        try:
            data = json.loads(record.data)
        except ValueError:
            data = record.data.decode(errors="replace")
    return {
        "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "stream": name,
        "seq": record.seq,
        "subject": "/".join(subjects.split(record.subject)[1:]),
        "deleted": record.is_tombstone,
        "data": data,
    }


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode() + b"\n"
