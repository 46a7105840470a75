"""
The Kubernetes API as the lab needs it: plain HTTP requests and one list-and-watch, no object model.

Works against the embedded server, a real kube-apiserver, or any cluster that a kubeconfig names.
Source: Kubernetes API concepts ("Efficient detection of changes"), kubeconfig (v1 Config).
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import httpx

from dunlin_lab.kubeconfig import KubeconfigError, access

Object = dict[str, Any]

PAGE_ITEMS = 500
WATCH_SECONDS = 300
WATCH_RESTART_S = 1.0
_GONE = 410
_PATCH_TYPES = {
    "strategic": "application/strategic-merge-patch+json",
    "merge": "application/merge-patch+json",
    "json": "application/json-patch+json",
}


class ApiError(Exception):
    """The API server answered with an error, or not at all (`code` 0)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Change(NamedTuple):
    """
    One change of a followed collection.

    `listed` carries all objects at once (the first thing, and again after every re-list: what is
    not in it is gone); `upserted` and `deleted` carry one.
    """

    kind: Literal["listed", "upserted", "deleted"]
    objects: tuple[Object, ...]


class KubeApi:
    """A connection pool to one API server."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    @classmethod
    def from_kubeconfig(cls, path: Path) -> KubeApi:
        """
        Connect as the kubeconfig's current context says.

        Raises:
            ApiError: the file lacks something; the message names the file and the field.
        """
        try:
            found = access(path)
        except KubeconfigError as error:
            raise ApiError(0, str(error)) from error
        # A watch is silent as long as nothing changes; the server ends it after WATCH_SECONDS.
        timeout = httpx.Timeout(30.0, read=WATCH_SECONDS + 30.0)
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=32)
        return cls(
            httpx.AsyncClient(
                base_url=found.server,
                auth=found.auth,
                verify=found.verify,
                timeout=timeout,
                limits=limits,
                trust_env=False,
            )
        )

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def get(self, path: str, **query: str) -> Object:
        """GET one object or list."""
        return await self._call("GET", path, params=query)

    async def create(self, path: str, body: Object) -> Object:
        """POST to a collection or subresource."""
        return await self._call("POST", path, json=body)

    async def patch(
        self, path: str, body: Any, kind: Literal["strategic", "merge", "json"] = "strategic"
    ) -> Object:
        """PATCH an object or subresource."""
        content_type = {"Content-Type": _PATCH_TYPES[kind]}
        return await self._call("PATCH", path, content=json.dumps(body), headers=content_type)

    async def delete(self, path: str, options: Object | None = None) -> Object:
        """DELETE with DeleteOptions."""
        content_type = {"Content-Type": "application/json"}
        body = json.dumps({"apiVersion": "v1", "kind": "DeleteOptions", **(options or {})})
        return await self._call("DELETE", path, content=body, headers=content_type)

    async def follow(self, path: str) -> AsyncIterator[Change]:
        """
        List a collection, then tell its changes for ever; outages are waited out with back-off.

        A watch that ends is taken up where it was; after an error or 410 a new list comes first.
        """
        failures = 0
        while True:
            try:
                objects, version = await self._list(path)
                yield Change("listed", objects)
                failures = 0
                async for change in self._watch(path, version):
                    failures = 0
                    if change is not None:
                        yield change
            except ApiError as error:
                if error.code != _GONE:
                    failures += 1
                    # Half of the delay is random, so that many clients do not return at once.
                    delay_s = min(10.0, 0.1 * 2**failures) * (0.5 + random.random() / 2)  # noqa: S311 - spreads load
                    await asyncio.sleep(delay_s)

    async def _list(self, path: str) -> tuple[tuple[Object, ...], str]:
        """All objects, page by page, and the resourceVersion to watch from."""
        found: list[Object] = []
        query = {"limit": str(PAGE_ITEMS)}
        while True:
            page = await self.get(path, **query)
            found += page.get("items") or []
            metadata = page.get("metadata") or {}
            if not metadata.get("continue"):
                return tuple(found), str(metadata.get("resourceVersion", ""))
            query["continue"] = metadata["continue"]

    async def _watch(self, path: str, version: str) -> AsyncIterator[Change | None]:
        """Changes after `version`; None for a bookmark. Ends only by an error."""
        while True:
            begin = asyncio.get_running_loop().time()
            query = {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "timeoutSeconds": str(WATCH_SECONDS),
                "resourceVersion": version,
            }
            try:
                async with self._client.stream("GET", path, params=query) as response:
                    if response.status_code != httpx.codes.OK:
                        await response.aread()
                        raise _api_error(response, "GET", path)
                    async for line in response.aiter_lines():
                        if line:
                            change, version = _watch_event(json.loads(line), version)
                            yield change
            except (httpx.HTTPError, ValueError) as error:
                raise ApiError(0, f"watch {path}: {error!r}") from error
            # A server that ends every watch at once is not to be asked without end.
            spent_s = asyncio.get_running_loop().time() - begin
            await asyncio.sleep(max(0.0, WATCH_RESTART_S - spent_s))

    async def _call(self, method: str, path: str, **arguments: Any) -> Object:
        """One request."""
        try:
            response = await self._client.request(method, path, **arguments)
        except httpx.HTTPError as error:
            raise ApiError(0, f"{method} {path}: {error!r}") from error
        if response.is_error:
            raise _api_error(response, method, path)
        try:
            answer: Object = response.json()
        except ValueError as error:
            raise ApiError(0, f"{method} {path}: no JSON: {error}") from error
        return answer


def _watch_event(event: Object, version: str) -> tuple[Change | None, str]:
    """One line of a watch."""
    kind, thing = event.get("type"), event.get("object") or {}
    if kind == "ERROR":
        raise ApiError(int(thing.get("code") or 0), f"watch: {thing.get('message')}")
    version = str((thing.get("metadata") or {}).get("resourceVersion") or version)
    match kind:
        case "ADDED" | "MODIFIED":
            return Change("upserted", (thing,)), version
        case "DELETED":
            return Change("deleted", (thing,)), version
        case "BOOKMARK":
            return None, version
        case _:
            raise ApiError(0, f"watch: unknown event type {kind!r}")


def _api_error(response: httpx.Response, method: str, path: str) -> ApiError:
    """The Status object's message, or what came instead."""
    try:
        message = response.json().get("message")
    except (ValueError, AttributeError):
        message = response.text[:200]
    return ApiError(response.status_code, f"{method} {path}: {response.status_code}: {message}")
