"""GET /v1/facts and GET /v1/status."""

import time
from collections.abc import Iterator
from typing import Any

from fastapi import APIRouter, HTTPException, Response
from fastapi.responses import StreamingResponse

from dunlin.service.http import not_found
from dunlin_watcher.kinds import KINDS, key_of
from dunlin_watcher.shell import Watcher
from dunlin_watcher.state import ABSENT

JSON = "application/json"


def router(watcher: Watcher) -> APIRouter:
    """The watcher's REST API."""
    api = APIRouter(prefix="/v1", tags=["watcher"])

    @api.get("/facts/{kind}")
    async def list_facts(kind: str, namespace: str | None = None) -> Response:
        """All facts of one kind, or of one namespace."""
        _known(kind)
        return StreamingResponse(_items(watcher, kind, namespace), media_type=JSON)

    @api.get("/facts/{kind}/{namespace}/{name}")
    async def one_fact(kind: str, namespace: str, name: str) -> Response:
        """One fact; namespace `_` for kinds without."""
        _known(kind)
        key = key_of("" if namespace == "_" else namespace, name)
        entry = watcher.state.entry((kind, key))
        if entry is None or entry.digest == ABSENT:
            raise not_found(kind, key)
        return Response(entry.data, media_type=JSON)

    @api.get("/status")
    async def status() -> dict[str, Any]:
        """How the watcher and each kind fare; which objects are bad or ask for too much."""
        return describe(watcher)

    return api


def _known(kind: str) -> None:
    if kind not in KINDS:
        raise HTTPException(404, f"kind {kind!r} not found; there are {', '.join(KINDS)}")


def _items(watcher: Watcher, kind: str, namespace: str | None) -> Iterator[bytes]:
    """The body, a fact at a time; a snapshot of the keys, so that changes meanwhile do no harm."""
    entries = watcher.state.kinds[kind].entries
    start = b'{"items":['
    for key in sorted(entries):
        entry = entries.get(key)
        if entry is None or entry.digest == ABSENT:
            continue
        if namespace is not None and not key.startswith(f"{namespace}/"):
            continue
        yield start + entry.data
        start = b","
    yield b'{"items":[]}' if start != b"," else b"]}"


def describe(watcher: Watcher) -> dict[str, Any]:
    """The body of /v1/status."""
    state, now = watcher.state, watcher.clock()
    kinds = {}
    for name, kind in state.kinds.items():
        status = watcher.statuses[name]
        heard = None if status.heard_at is None else round(now - status.heard_at, 3)
        kinds[name] = {
            "count": kind.count,
            "resource_version": kind.version,
            "complete": kind.complete,
            "watching": status.watching,
            "served": not status.absent,
            "lag_s": heard,
            "relists": status.relists,
            "watch_restarts": status.watch_restarts,
            "last_error": status.last_error,
            "last_error_ms": status.last_error_ms or None,
        }
    return {
        "replica": watcher.settings.replica,
        "leading": watcher.leads(),
        "fencing": watcher.lease.fencing if watcher.lease else None,
        "in_sync": watcher.not_ready() is None,
        "waiting_for": watcher.not_ready() or "",
        "epoch": state.epoch,
        "unpublished": len(state.dirty) + len(state.inflight),
        "oldest_change_s": _oldest(watcher),
        "kinds": kinds,
        "bad_objects": state.bad_objects(),
        "unsupported": state.unsupported_objects(),
    }


def _oldest(watcher: Watcher) -> float:
    """How long the oldest unpublished change has been waiting."""
    marks = [*watcher.state.dirty.values(), *(m for _d, m in watcher.state.inflight.values())]
    since = min((mark.since_ms for mark in marks if mark.since_ms), default=None)
    return 0.0 if since is None else round(max(0.0, time.time() - since / 1000), 3)
