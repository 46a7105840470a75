"""The binder: which Pods it binds, where, and what it says of those that fit nowhere."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from dunlin_lab.binder import Binder, take
from dunlin_lab.kubeapi import Change, KubeApi

Object = dict[str, Any]


def node(name: str, **spec: Any) -> Object:
    """A node that is ready."""
    status = {"conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name, "labels": {"h": name}}, "spec": spec, "status": status}


def pod(name: str, **spec: Any) -> Object:
    """A Pod."""
    metadata = {"name": name, "namespace": "d", "uid": f"uid-{name}"}
    return {"metadata": metadata, "spec": spec, "status": {"phase": "Pending"}}


class World:
    """An API server with these objects; it takes bindings without showing them in the watch."""

    def __init__(self, nodes: list[Object], pods: list[Object], refuse: int = 0) -> None:
        self.items = {"/api/v1/nodes": nodes, "/api/v1/pods": pods}
        self.bound: dict[str, str] = {}
        self.said: dict[str, str] = {}
        self.refuse = refuse
        self.requests = 0

    async def answer(self, request: httpx.Request) -> httpx.Response:
        """One request."""
        path = request.url.path
        if request.url.params.get("watch"):
            await asyncio.sleep(3600)
        if request.method == "GET":
            metadata = {"resourceVersion": "1"}
            return httpx.Response(200, json={"metadata": metadata, "items": self.items[path]})
        self.requests += 1
        if self.refuse:
            self.refuse -= 1
            return httpx.Response(500, json={"message": "not now"})
        body = json.loads(request.content)
        name = path.split("/")[6]
        if path.endswith("/binding"):
            self.bound[name] = body["target"]["name"]
        else:
            self.said[name] = body["status"]["conditions"][0]["message"]
        return httpx.Response(201, json={})

    async def run(self, ours: str, until: int) -> None:
        """A binder, until there were that many writes."""
        client = httpx.AsyncClient(transport=httpx.MockTransport(self.answer), base_url="http://x")
        running = asyncio.create_task(Binder(KubeApi(client), frozenset(ours.split()), 10).run())
        async with asyncio.timeout(10):
            while self.requests < until:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_pods_are_spread_before_the_watch_shows_them() -> None:
    """Six Pods at once go three and three, not all to the node that was empty when asked."""
    world = World([node("n1"), node("n2")], [pod(f"p{i}") for i in range(6)])
    await world.run("n1 n2", 6)
    assert sorted(world.bound.values()) == ["n1"] * 3 + ["n2"] * 3


async def test_who_is_not_bound() -> None:
    """Pods of other schedulers, with gates, with a node, or going; and nodes of others."""
    pods = [
        pod("mine"),
        pod("theirs", schedulerName="other"),
        pod("gated", schedulingGates=[{"name": "g"}]),
        pod("placed", nodeName="n2"),
        {**pod("going"), "metadata": {**pod("going")["metadata"], "deletionTimestamp": "t"}},
    ]
    world = World([node("n1"), node("foreign")], pods)
    await world.run("n1", 1)
    assert world.bound == {"mine": "n1"}


async def test_nowhere() -> None:
    """A Pod that fits nowhere is told why, and a cordoned node takes none."""
    world = World([node("n1", unschedulable=True)], [pod("p", nodeSelector={"h": "n2"})])
    await world.run("n1", 1)
    assert world.said == {"p": "0/1 nodes are available: 1 node(s) were unschedulable."}
    assert not world.bound


async def test_a_refusal_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    """An error of the API is printed with the Pod's name, and the Pod is bound a moment later."""
    world = World([node("n1")], [pod("p")], refuse=1)
    await world.run("n1", 2)
    assert world.bound == {"p": "n1"}
    assert "d/p" in capsys.readouterr().out


def test_a_new_list_replaces_all() -> None:
    """What a re-list lacks is gone; a deletion takes one."""
    into: dict[str, Object] = {}
    take(Change("listed", (node("a"), node("b"))), into, "name")
    take(Change("deleted", (node("a"),)), into, "name")
    take(Change("upserted", (node("c"),)), into, "name")
    assert sorted(into) == ["b", "c"]
    take(Change("listed", (node("d"),)), into, "name")
    assert sorted(into) == ["d"]
