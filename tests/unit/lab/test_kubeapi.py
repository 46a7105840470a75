"""List and watch over plain HTTP: pages, bookmarks, 410, outages."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from dunlin_lab.kubeapi import ApiError, KubeApi

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off and restart pauses take no time here."""

    async def no_time(_: float) -> None:
        return None

    monkeypatch.setattr(asyncio, "sleep", no_time)


def api(handler: Handler) -> KubeApi:
    """A client of a server that is a function."""
    return KubeApi(httpx.AsyncClient(transport=httpx.MockTransport(handler), base_url="http://x"))


def pod(name: str, version: str) -> dict[str, Any]:
    """The least of a Pod."""
    return {"metadata": {"name": name, "resourceVersion": version}}


def lines(*events: tuple[str, dict[str, Any]]) -> httpx.Response:
    """A watch that ends after these events."""
    text = "".join(json.dumps({"type": kind, "object": obj}) + "\n" for kind, obj in events)
    return httpx.Response(200, text=text)


async def take(client: KubeApi, count: int) -> list[tuple[str, list[str]]]:
    """The first changes: (kind, names)."""
    found: list[tuple[str, list[str]]] = []
    async for change in client.follow("/api/v1/pods"):
        found.append((change.kind, [o["metadata"]["name"] for o in change.objects]))
        if len(found) == count:
            break
    return found


async def test_pages_are_joined_and_the_watch_goes_on_where_it_ended() -> None:
    """Bookmarks move the resourceVersion without being told; a watch's normal end is no re-list."""
    watched: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        query = request.url.params
        if query.get("watch"):
            watched.append(query["resourceVersion"])
            if len(watched) == 1:
                return lines(("ADDED", pod("c", "8")), ("BOOKMARK", pod("", "20")))
            return lines(("DELETED", pod("c", "21")))
        if query.get("continue") == "next":
            return httpx.Response(
                200, json={"metadata": {"resourceVersion": "7"}, "items": [pod("b", "2")]}
            )
        return httpx.Response(
            200, json={"metadata": {"continue": "next"}, "items": [pod("a", "1")]}
        )

    assert await take(api(handler), 3) == [
        ("listed", ["a", "b"]),
        ("upserted", ["c"]),
        ("deleted", ["c"]),
    ]
    assert watched == ["7", "20"]


@pytest.mark.parametrize("how", ["status", "event", "outage"])
async def test_a_lost_watch_begins_with_a_new_list(how: str) -> None:
    """410 as a status, 410 inside the stream, and a broken connection."""
    lists = 0

    def handler(request: httpx.Request) -> httpx.Response:
        nonlocal lists
        if not request.url.params.get("watch"):
            lists += 1
            body = {"metadata": {"resourceVersion": "1"}, "items": [pod(f"p{lists}", "1")]}
            return httpx.Response(200, json=body)
        if how == "status":
            return httpx.Response(410, json={"message": "too old"})
        if how == "event":
            return lines(("ERROR", {"code": 410, "message": "too old"}))
        raise httpx.ReadError("gone", request=request)

    assert await take(api(handler), 2) == [("listed", ["p1"]), ("listed", ["p2"])]


async def test_errors_carry_the_code_and_the_servers_message() -> None:
    """So that 404 and 409 can be told apart."""
    client = api(lambda _: httpx.Response(409, json={"kind": "Status", "message": "conflict!"}))
    with pytest.raises(ApiError, match=r"PATCH /x: 409: conflict!") as caught:
        await client.patch("/x", {})
    assert caught.value.code == 409


@pytest.mark.parametrize("text", ["", "{", "current-context: a", "contexts: [{name: a}]"])
def test_a_bad_kubeconfig_is_named(tmp_path: Path, text: str) -> None:
    """The file and what it lacks."""
    path = tmp_path / "kubeconfig"
    path.write_text(text)
    with pytest.raises(ApiError, match="kubeconfig"):
        KubeApi.from_kubeconfig(path)
