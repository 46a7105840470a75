"""REST of `policy explain`: answers, refusals by name, and never more than a few at a time."""

import asyncio
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from dunlin.events.intents import AnyIntent
from dunlin.events.state import Applied
from dunlin.openflow.trace import CannotTrace
from dunlin_flowctl import explain as module
from dunlin_flowctl import rest
from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from dunlin_flowctl.core.desired import Desired, IntentVersion
from dunlin_flowctl.explain import WAITING_MAX
from tests.fixtures import cluster
from tests.packets.test_explain import PODS, subject

PATH = "/v1/policy/explain"


@pytest.fixture
def client() -> httpx.AsyncClient:
    """A replica that has read two nodes; the switch of n2 is behind."""
    desired = Desired(PipelineCompiler())
    wanted: list[AnyIntent] = [cluster.switch(1), cluster.switch(2)]
    wanted += [cluster.route(1), cluster.route(2), *PODS, *map(subject, PODS)]
    for number, intent in enumerate(wanted, 1):
        desired.upsert(IntentVersion(intent, number))
    applied = {
        node: Applied(node=node, dpid=1, revision=revision, epoch="e", connected=True)
        for node, revision in (("n1", 99), ("n2", 3))
    }
    handles: Any = SimpleNamespace(
        desired=desired, applied=applied, runners={}, intents_epoch="e", denials=None, facts={}
    )
    app = FastAPI()
    app.include_router(rest.router(handles, SimpleNamespace()))  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://flowctl")


async def ask(client: httpx.AsyncClient, destination: str = "default/p22") -> httpx.Response:
    """One question."""
    params = {"source": "default/p11", "destination": destination, "port": "80"}
    return await client.get(PATH, params=params)


async def test_an_answer(client: httpx.AsyncClient) -> None:
    """The verdict, both ends, and what is not in force yet."""
    answer = await ask(client)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert found["verdict"] == "ALLOWED"
    force = {j["node"]: j["in_force"] for j in found["paths"][0]["judgements"]}
    assert force == {"n1": True, "n2": False}


async def test_wrong_words(client: httpx.AsyncClient) -> None:
    """422, and which word."""
    answer = await ask(client, "default/nobody")
    assert answer.status_code == 422
    assert "no Pod default/nobody" in answer.json()["detail"]


async def test_one_at_a_time(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many at once a few wait, the others are told to come again; the loop goes on meanwhile."""
    answers = await asyncio.gather(*(ask(client) for _ in range(WAITING_MAX + 3)))
    statuses = [answer.status_code for answer in answers]
    assert (statuses.count(200), statuses.count(503)) == (WAITING_MAX, 3)
    assert (await ask(client)).status_code == 200

    def unknown(*_arguments: Any) -> None:
        raise CannotTrace("an action of a later version")

    monkeypatch.setattr(module, "explain", unknown)
    assert (await ask(client)).status_code == 501
