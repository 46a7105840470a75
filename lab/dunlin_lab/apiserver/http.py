"""
The wire: one ASGI application. Authentication, routing, and the answers' form.

Plain ASGI without a framework: the paths are the resource table's, and a watch is one loop
(ADR 0002 has the measurements).
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from dunlin_lab.apiserver import discovery, errors, subresources
from dunlin_lab.apiserver.deletion import delete, delete_all
from dunlin_lab.apiserver.lists import Page, list_page, render_form, selection_of
from dunlin_lab.apiserver.registry import APPLY_PATCH, PATCH_TYPES
from dunlin_lab.apiserver.requests import (
    Request,
    Response,
    Target,
    json_response,
    parse_query,
    parse_target,
)
from dunlin_lab.apiserver.values import encode
from dunlin_lab.apiserver.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from dunlin_lab.apiserver.registry import Registry, Written

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger(__name__)

BODY_MAX = 3 * 1024 * 1024
"""Bytes; the real limit of a request."""

_OPEN_PATHS = ("/healthz", "/livez", "/readyz", "/version")
_NOT_FOUND = Response(404, b"404 page not found\n", "text/plain; charset=utf-8")
_OPENAPI_ASKED = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf"
_OPENAPI_SENT = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"
"""The same type; an `@` in an answer's media type does not parse in Go."""

_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "patch",
          "DELETE": "delete"}  # fmt: skip


class ApiServer:
    """The ASGI application."""

    def __init__(self, registry: Registry, token: str) -> None:
        """Serve a registry to whoever has the token; an empty one admits everybody."""
        self._registry = registry
        self._token = f"Bearer {token}" if token else ""
        self.stopping = asyncio.Event()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one connection's request."""
        if scope["type"] != "http":
            return
        request, answer = None, None
        try:
            request = await _read(scope, receive)
            answer = self._answer(request)
        except errors.ApiError as error:
            answer = json_response(error.body(), error.code)
        except Exception:  # noqa: BLE001  (one request may not stop the others; it is logged)
            _log.exception("%s %s failed", scope["method"], scope["path"])
            text = "Internal error occurred: see the log of the lab's API server"
            status = errors.ApiError(500, "InternalError", text)
            answer = json_response(status.body(), status.code)
        if isinstance(answer, Watch):
            await self._stream(answer, receive, send)
        else:
            await _send(answer, send)

    def _answer(self, request: Request) -> Response | Watch:
        if self._token and request.path not in _OPEN_PATHS:
            given = request.headers.get("authorization", "")
            if not hmac.compare_digest(given.encode(), self._token.encode()):
                raise errors.unauthorized()
        target = parse_target(request.path)
        if target is None:
            return _document(request)
        if not request.accepts_json:
            message = "only the following media types are accepted: application/json"
            raise errors.ApiError(406, "NotAcceptable", message, {})
        if target.subresource:
            return self._subresource(request, target)
        verb = _VERBS.get(request.method, "")
        if not target.name:
            verb = {"get": "list", "delete": "deletecollection"}.get(verb, verb)
        if verb not in target.resource.verbs or (verb in ("update", "patch") and not target.name):
            raise errors.method_not_allowed()
        if verb in ("get", "list"):
            return self._read(request, target)
        if verb == "create":
            return self._create(request, target)
        if verb in ("update", "patch"):
            return self._change(request, target)
        return self._delete(request, target)

    def _read(self, request: Request, target: Target) -> Response | Watch:
        store, clock = self._registry.store, self._registry.clock
        selection = selection_of(request, target)
        if request.flag("watch"):
            return Watch(store, request, target, selection, clock)
        if target.name:
            found = self._registry.get(target.resource, target.namespace, target.name)
            page = Page(found.revision, [found])
            return Response(200, render_form(request, target.resource, page, clock(), single=True))
        page = list_page(store, request, target, selection)
        return Response(200, render_form(request, target.resource, page, clock()))

    def _create(self, request: Request, target: Target) -> Response:
        if target.name or (target.resource.namespaced and not target.namespace):
            raise errors.method_not_allowed()
        stored = self._registry.create(
            target.resource, target.namespace, request.payload(), request.write_options()
        )
        return Response(201, stored.full(target.resource))

    def _change(self, request: Request, target: Target) -> Response:
        options, written = request.write_options(), None
        where = (target.resource, target.namespace, target.name)
        if request.method == "PUT":
            written = self._registry.update(
                *where, request.payload(), options, subresource=target.subresource
            )
        else:
            kind = _patch_type(request)
            written = self._registry.patch(
                *where, kind, request.payload(), options, subresource=target.subresource
            )
        return _written(target, written)

    def _delete(self, request: Request, target: Target) -> Response:
        options, resource = request.delete_options(), target.resource
        if not target.name:
            selection = selection_of(request, target)
            page = list_page(self._registry.store, request, target, selection)
            if not options.dry_run:
                delete_all(self._registry, resource, page.items, options)
            return Response(200, render_form(request, resource, page, self._registry.clock()))
        done = delete(self._registry, resource, target.namespace, target.name, options)
        if done.gone and not resource.returns_deleted:
            details = errors.details_of(resource, target.name)
            details["uid"] = done.stored.obj["metadata"]["uid"]
            return json_response(errors.success(details=details))
        return Response(200, done.stored.full(resource))

    def _subresource(self, request: Request, target: Target) -> Response:
        sub = target.resource.subresource(target.subresource)
        if sub is None:
            return json_response(_unknown_resource().body(), 404)
        if _VERBS.get(request.method, "") not in sub.verbs:
            raise errors.method_not_allowed()
        registry, name = self._registry, target.name
        match sub.name:
            case "binding":
                body = request.payload()
                return json_response(
                    subresources.bind_request(registry, target.namespace, name, body), 201
                )
            case "eviction":
                body = request.payload()
                return json_response(
                    subresources.evict(registry, target.namespace, name, body), 201
                )
            case "finalize":
                return _written(target, subresources.finalize(registry, name, request.payload()))
            case "scale":
                return self._scale(request, target)
            case _:
                if request.method == "GET":
                    found = registry.get(target.resource, target.namespace, name)
                    return Response(200, found.full(target.resource))
                return self._change(request, target)

    def _scale(self, request: Request, target: Target) -> Response:
        where = (target.resource, target.namespace, target.name)
        if request.method == "GET":
            return json_response(subresources.scale_of(self._registry.get(*where).obj))
        options, body = request.write_options(), request.payload()
        if request.method == "PUT":
            return json_response(subresources.set_scale(self._registry, *where, body, options))
        kind = _patch_type(request)
        return json_response(subresources.patch_scale(self._registry, *where, kind, body, options))

    async def _stream(self, watch: Watch, receive: Receive, send: Send) -> None:
        """Send a watch's lines until it ends, its client leaves, or the server stops."""
        leaving = asyncio.ensure_future(_disconnected(receive))
        stopping = asyncio.ensure_future(self.stopping.wait())
        pump = asyncio.ensure_future(_pump(watch, send))
        try:
            tasks = (leaving, stopping, pump)
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not pump.done():
                pump.cancel()
            await asyncio.gather(pump, return_exceptions=True)
            if not leaving.done():
                await send({"type": "http.response.body", "body": b""})
        finally:
            watch.close()
            for task in (leaving, stopping, pump):
                task.cancel()


async def _pump(watch: Watch, send: Send) -> None:
    await send(_start(200, "application/json"))
    await send({"type": "http.response.body", "body": b"", "more_body": True})
    async with aclosing(watch.lines()) as lines:
        async for chunk in lines:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _read(scope: Message, receive: Receive) -> Request:
    parts: list[bytes] = []
    more, size = True, 0
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
        if size > BODY_MAX:
            text = f"Request entity too large: limit is {BODY_MAX}"
            raise errors.ApiError(413, "RequestEntityTooLarge", text, {})
    headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
    query = parse_query(scope["query_string"])
    return Request(scope["method"], scope["path"], query, headers, b"".join(parts))


def _start(status: int, content_type: str, length: int | None = None) -> Message:
    headers = [(b"content-type", content_type.encode()), (b"cache-control", b"no-cache, private")]
    if length is not None:
        headers.append((b"content-length", b"%d" % length))
    return {"type": "http.response.start", "status": status, "headers": headers}


async def _send(answer: Response, send: Send) -> None:
    await send(_start(answer.status, answer.content_type, len(answer.body)))
    await send({"type": "http.response.body", "body": answer.body})


def _patch_type(request: Request) -> str:
    kind = request.content_type
    if kind not in PATCH_TYPES:
        raise errors.unsupported_media_type(kind, PATCH_TYPES)
    if kind == APPLY_PATCH and not request.query.get("fieldManager"):
        cause = errors.required("fieldManager", "is required for apply patch")
        raise errors.invalid("PatchOptions", "meta.k8s.io", "", [cause])
    return kind


def _written(target: Target, written: Written) -> Response:
    return Response(201 if written.created else 200, written.stored.full(target.resource))


def _unknown_resource() -> errors.ApiError:
    message = "the server could not find the requested resource"
    return errors.ApiError(404, "NotFound", message, {})


def _document(request: Request) -> Response:
    """Answer what is no resource: discovery, OpenAPI, health."""
    if request.method not in ("GET", "HEAD"):
        return _NOT_FOUND
    parts = [part for part in request.path.split("/") if part]
    found: object | None = None
    match parts:
        case ["healthz" | "livez" | "readyz", *_]:
            return Response(200, b"ok", "text/plain; charset=utf-8")
        case ["version"]:
            found = discovery.VERSION
        case ["api"] | ["apis"]:
            return _discovery(request, core=parts == ["api"])
        case ["api", version]:
            found = discovery.resources_of("", version)
        case ["apis", group]:
            found = discovery.group_of(group)
        case ["apis", group, version]:
            found = discovery.resources_of(group, version)
        case ["openapi", "v2"]:
            if _OPENAPI_ASKED in request.headers.get("accept", ""):
                return Response(200, discovery.openapi_v2_protobuf(), _OPENAPI_SENT)
            found = discovery.openapi_v2()
        case ["openapi", "v3"]:
            found = discovery.openapi_v3_index()
        case ["openapi", "v3", *rest]:
            found = discovery.openapi_v3("/".join(rest))
        case ["api", version, *_] if discovery.resources_of("", version):
            return json_response(_unknown_resource().body(), 404)
        case ["apis", group, version, *_] if discovery.resources_of(group, version):
            return json_response(_unknown_resource().body(), 404)
    return _NOT_FOUND if found is None else Response(200, encode(found))


def _discovery(request: Request, *, core: bool) -> Response:
    accept = request.headers.get("accept", "")
    for media, version in (
        (discovery.AGGREGATED_V2, "v2"), (discovery.AGGREGATED_V2BETA1, "v2beta1"),
    ):  # fmt: skip
        if media.removeprefix("application/json;") in accept:
            return Response(200, encode(discovery.aggregated(version, core=core)), media)
    if core:
        return json_response(discovery.core_versions(request.headers.get("host", "")))
    return json_response(discovery.groups())
