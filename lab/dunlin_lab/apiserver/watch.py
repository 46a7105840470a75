"""Watches: which events a client sees, and the buffer between the writes and its socket."""

from __future__ import annotations

import asyncio
import math
import random
from typing import TYPE_CHECKING

from dunlin_lab.apiserver import errors
from dunlin_lab.apiserver.lists import Selection, partial_metadata
from dunlin_lab.apiserver.store import Change, Store, Stored, event_line
from dunlin_lab.apiserver.tables import table
from dunlin_lab.apiserver.values import Obj, encode

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from dunlin_lab.apiserver.requests import Request, Target
    from dunlin_lab.apiserver.resources import Resource

BUFFER_MAX = 20_000
"""Events kept for a client that does not read; one that falls behind further is cut off."""

BOOKMARK_SECONDS = 60.0
_CHUNK_LINES = 256
_LATE_SECONDS = 0.005
_BEFORE_END_SECONDS = 2.0
_TIMEOUT_SECONDS = (1800, 3600)
_INITIAL_EVENTS_END = "k8s.io/initial-events-end"


def event_type(selection: Selection, change: Change) -> str | None:
    """Return the event a change is for a selection; leaving it is DELETED, entering ADDED."""
    before = change.old is not None and selection.matches(change.old)
    after = change.new is not None and selection.matches(change.new)
    if after:
        return "MODIFIED" if before else "ADDED"
    return "DELETED" if before else None


class Watch:
    """One watch: from the request to its lines."""

    def __init__(
        self, store: Store, request: Request, target: Target, selection: Selection,
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """
        Begin at the revision asked for, and miss nothing from now on.

        Raises:
            ApiError: 400, 422.
        """
        self._store = store
        self._resource: Resource = target.resource
        self._selection = selection
        self._request = request
        self._clock = clock
        self._pending: list[bytes] = []
        self._wake = asyncio.Event()
        self._behind = 0
        self._overflow = False
        self._headers = True
        low, high = _TIMEOUT_SECONDS
        asked = request.seconds("timeoutSeconds")
        self._timeout = float(asked or random.randint(low, high))  # noqa: S311 - spreads load
        self._bookmarks = request.flag("allowWatchBookmarks")
        self._timer: asyncio.TimerHandle | None = None
        self._unsubscribe: Callable[[], None] = lambda: None
        self._begin()

    def _begin(self) -> None:
        request, collection = self._request, self._store.of(self._resource)
        initial = request.query.get("sendInitialEvents")
        if initial and request.query.get("resourceVersionMatch") != "NotOlderThan":
            text = "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"
            cause = errors.forbidden_field("resourceVersionMatch", text)
            raise errors.invalid("ListOptions", "meta.k8s.io", "", [cause])
        revision = request.seconds("resourceVersion") or 0
        if request.flag("sendInitialEvents") or (not revision and not initial):
            self._send_existing()
            if request.flag("sendInitialEvents") and self._bookmarks:
                self._bookmark({_INITIAL_EVENTS_END: "true"})
        elif revision:
            try:
                for change in collection.since(revision):
                    self._on_change(change)
            except errors.ApiError as error:
                self._line("ERROR", encode(error.body()))
                self._timeout = 0.0
        self._unsubscribe = self._store.subscribe(self._resource, self._on_change)

    def _send_existing(self) -> None:
        prefix = f"{self._selection.namespace}/" if self._selection.namespace else ""
        for item in self._store.of(self._resource).scan(self._store.revision, prefix, ""):
            if self._selection.matches(item):
                self._line("ADDED", self._shown(item))

    def _on_change(self, change: Change) -> None:
        kind = event_type(self._selection, change)
        if kind is None:
            return
        self._behind += 1
        if self._behind > BUFFER_MAX:
            self._overflow = True
        elif self._request.form == "object":
            self._pending.append(change.line(kind))
            self._headers = False
        else:
            shown = change.departed() if kind == "DELETED" else change.latest
            self._line(kind, self._shown(shown))
        self._wake.set()

    def _line(self, kind: str, body: bytes) -> None:
        self._pending.append(event_line(kind, body))
        self._wake.set()

    def _shown(self, item: Stored) -> bytes:
        """Return an object in the client's form; only a watch's first Table has headers."""
        if self._request.form == "table":
            metadata = {"resourceVersion": str(item.revision)}
            headers, self._headers = self._headers, False
            return encode(
                table(self._resource, [item], metadata, now=self._clock(),
                      include=self._request.include, headers=headers)
            )  # fmt: skip
        self._headers = False
        if self._request.form == "metadata":
            return encode(partial_metadata(item))
        return item.full(self._resource)

    def _bookmark(self, annotations: Obj | None = None) -> None:
        metadata: Obj = {"resourceVersion": str(self._store.revision)}
        if annotations:
            metadata["annotations"] = annotations
        shown = {"kind": self._resource.kind, "apiVersion": self._resource.api_version,
                 "metadata": metadata, **self._resource.empty}  # fmt: skip
        if self._request.form == "table":
            shown = {"kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
                     "columnDefinitions": None, "rows": [{"cells": [], "object": {
                         "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                         "metadata": metadata}}]}  # fmt: skip
        self._line("BOOKMARK", encode(shown))

    async def lines(self) -> AsyncGenerator[bytes, None]:
        """Yield chunks of whole lines until the watch times out or its client falls behind."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        last = end - _BEFORE_END_SECONDS
        bookmark = min(loop.time() + BOOKMARK_SECONDS, last) if self._bookmarks else math.inf
        self._wake_at(min(bookmark, end))
        while not self._overflow:
            lines, self._pending, self._behind = self._pending, [], 0
            for start in range(0, len(lines), _CHUNK_LINES):
                yield b"".join(lines[start : start + _CHUNK_LINES])
            now = loop.time()
            if self._pending:
                continue
            if now >= end:
                return
            if now >= bookmark:
                self._bookmark()
                bookmark = min(now + BOOKMARK_SECONDS, last) if now < last else math.inf
                self._wake_at(min(bookmark, end))
                continue
            await self._wake.wait()
            self._wake.clear()

    def _wake_at(self, when: float) -> None:
        """Set the one timer of this watch; a little late, so that its time has come for sure."""
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_at(when + _LATE_SECONDS, self._wake.set)

    def close(self) -> None:
        """Stop listening."""
        if self._timer is not None:
            self._timer.cancel()
        self._unsubscribe()
