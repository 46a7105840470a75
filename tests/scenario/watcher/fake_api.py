"""A scriptable API server: lists and watches seven collections, and misbehaves on demand."""

import asyncio
import json
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from dunlin_watcher.kinds import KINDS, key_of

JSON = "application/json"
Misbehaviour = Callable[[web.Request], Awaitable[web.StreamResponse]]


def refuse(status: int, reason: str = "", **headers: str) -> Misbehaviour:
    """Answer with a Status; header names with `_` for `-`."""

    async def answer(_request: web.Request) -> web.StreamResponse:
        body = {"kind": "Status", "code": status, "reason": reason, "message": "as scripted"}
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.json_response(body, status=status, headers=named)

    return answer


def stream(*pieces: bytes, then_break: bool = False) -> Misbehaviour:
    """Answer a watch with these bytes and end it, properly or by dropping the connection."""

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": JSON})
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
        if then_break:
            _drop(request)
        return response

    return answer


class FakeApi:
    """
    Objects by kind and key, a revision, and what has happened since `compacted`.

    `script[(verb, kind)]`: answers to give instead of the real one, one a request; `requests`
    counts (verb, kind); `versions` holds the resourceVersion of each watch of a kind.
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
        self.revision = 100
        self.compacted = 0
        self.events: dict[str, list[tuple[int, str, dict[str, Any]]]] = {kind: [] for kind in KINDS}
        self.script: dict[tuple[str, str], deque[Misbehaviour]] = defaultdict(deque)
        self.always: dict[tuple[str, str], Misbehaviour] = {}
        self.requests: Counter[tuple[str, str]] = Counter()
        self.versions: dict[str, list[str]] = defaultdict(list)
        self.partial_metadata = True
        self.frozen: set[str] = set()
        self._changed = asyncio.Event()
        self._cut = 0
        self._runner: web.AppRunner | None = None
        self.port = 0

    # --- the cluster ---

    def put(self, kind: str, obj: dict[str, Any]) -> None:
        """Create or replace one object."""
        self.revision += 1
        meta = dict(obj["metadata"], resourceVersion=str(self.revision))
        key = key_of(meta.get("namespace", ""), meta["name"])
        old = self.objects[kind].get(key)
        meta.setdefault("uid", old["metadata"]["uid"] if old else f"uid-{self.revision}")
        made = dict(obj, metadata=meta)
        self.objects[kind][key] = made
        self._happen(kind, "MODIFIED" if old else "ADDED", made)

    def delete(self, kind: str, key: str) -> None:
        """Delete one object."""
        self.revision += 1
        old = self.objects[kind].pop(key)
        meta = dict(old["metadata"], resourceVersion=str(self.revision))
        self._happen(kind, "DELETED", dict(old, metadata=meta))

    def repeat(self, kind: str, count: int = 1) -> None:
        """Send the last `count` events of a kind once more, as new lines of the same content."""
        for _revision, what, obj in self.events[kind][-count:]:
            self._happen(kind, what, obj)

    def bookmark(self, kind: str) -> None:
        """Tell all watches of a kind how far the revision is."""
        self.revision += 1
        obj = {"kind": "any", "metadata": {"resourceVersion": str(self.revision)}}
        self._happen(kind, "BOOKMARK", obj)

    def error(self, kind: str, code: int, reason: str) -> None:
        """Send an ERROR event."""
        self.revision += 1
        self._happen(kind, "ERROR", {"kind": "Status", "code": code, "reason": reason})

    def compact(self) -> None:
        """Forget all events: a watch from before now gets 410."""
        self.compacted = self.revision
        for events in self.events.values():
            events.clear()

    def cut(self) -> None:
        """Drop the connections of all watches."""
        self._cut += 1
        self._wake()

    def _happen(self, kind: str, what: str, obj: dict[str, Any]) -> None:
        self.events[kind].append((self.revision, what, obj))
        self._wake()

    def _wake(self) -> None:
        event, self._changed = self._changed, asyncio.Event()
        event.set()

    # --- the server ---

    async def start(self) -> None:
        """Listen on loopback; again on the same port after `stop`."""
        app = web.Application()
        for kind in KINDS.values():
            app.router.add_get(kind.path, self._handler(kind.name))
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    async def stop(self) -> None:
        """Close every connection and the port."""
        self.cut()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def kubeconfig(self, folder: Path) -> str:
        """A kubeconfig for this server."""
        path = folder / "kubeconfig"
        path.write_text(
            json.dumps(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "c",
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                    "clusters": [
                        {"name": "c", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
                    ],
                    "users": [{"name": "u", "user": {"token": "secret"}}],
                }
            )
        )
        return str(path)

    def _handler(self, kind: str) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def handle(request: web.Request) -> web.StreamResponse:
            verb = "watch" if request.query.get("watch") else "list"
            if "PartialObjectMetadataList" in request.headers.get("Accept", ""):
                verb = "metadata"
            self.requests[verb, kind] += 1
            if verb == "watch":
                self.versions[kind].append(request.query["resourceVersion"])
            if self.script[verb, kind]:
                return await self.script[verb, kind].popleft()(request)
            if (verb, kind) in self.always:
                return await self.always[verb, kind](request)
            if verb == "watch":
                return await self._watch(kind, request)
            return self._list(kind, request, metadata=verb == "metadata")

        return handle

    def _list(self, kind: str, request: web.Request, *, metadata: bool) -> web.Response:
        limit = int(request.query.get("limit", "0")) or 10**9
        start, revision = 0, self.revision
        if token := request.query.get("continue"):
            start, revision = map(int, token.split("."))
            if revision < self.compacted:
                return web.json_response(
                    {"kind": "Status", "code": 410, "reason": "Expired"}, status=410
                )
        found = [self.objects[kind][key] for key in sorted(self.objects[kind])]
        page = found[start : start + limit]
        if metadata and self.partial_metadata:
            page = [{"metadata": obj["metadata"]} for obj in page]
        more = f"{start + limit}.{revision}" if start + limit < len(found) else ""
        meta = {"resourceVersion": str(revision), **({"continue": more} if more else {})}
        return web.json_response({"kind": "List", "metadata": meta, "items": page or None})

    async def _watch(self, kind: str, request: web.Request) -> web.StreamResponse:
        seen, cut = int(request.query["resourceVersion"]), self._cut
        response = web.StreamResponse(headers={"Content-Type": JSON})
        response.enable_chunked_encoding()
        await response.prepare(request)
        if seen < self.compacted:
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}
            await response.write(_line("ERROR", gone))
            return response
        sent = sum(1 for revision, _what, _obj in self.events[kind] if revision <= seen)
        while True:
            changed = self._changed
            if self._cut != cut:
                _drop(request)
                return response
            events = [] if kind in self.frozen else self.events[kind][sent:]
            for _revision, what, obj in events:
                await response.write(_line(what, obj))
            sent += len(events)
            if not events:
                await changed.wait()


def _drop(request: web.Request) -> None:
    """Cut the connection, unless the client has already."""
    if request.transport is not None:
        request.transport.abort()


def _line(what: str, obj: dict[str, Any]) -> bytes:
    return json.dumps({"type": what, "object": obj}).encode() + b"\n"
