"""Adapter and watcher on real API servers: the lab's, and kube-apiserver where given."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from dunlin import subjects, wire
from dunlin.bus.nats import NatsBus
from dunlin.bus.nats_client import Options
from dunlin.bus.nats_server import NatsServer, NatsServerError
from dunlin.events.rpc import Synced
from dunlin_watcher import kube
from dunlin_watcher.adapters.errors import ApiError, ExpiredError, NotServedError, UnavailableError
from dunlin_watcher.adapters.kubernetes import KubernetesApi, error_of_event
from dunlin_watcher.kinds import KINDS, Kind
from dunlin_watcher.normalise import identify
from tests.fixtures.kube_api import MERGE_PATCH, STARTERS, Server
from tests.scenario.watcher.cluster import World

PODS = "/api/v1/namespaces/default/pods"


@dataclass
class Given:
    """A running server and the folder that holds its kubeconfig."""

    server: Server
    kubeconfig: str
    config: str


@pytest.fixture(scope="module", params=list(STARTERS))
def given(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Given]:
    """A fresh server of each sort."""
    folder = tmp_path_factory.mktemp(f"watcher-{request.param}")
    with STARTERS[request.param](folder) as server:
        config = next(
            path for path in (folder / "kubeconfig", folder / "admin.kubeconfig") if path.is_file()
        )
        yield Given(server, str(config), config.read_text())


@pytest.fixture
def client(given: Given) -> Iterator[httpx.Client]:
    """Somebody else who changes the cluster."""
    with given.server.client() as found:
        yield found


@pytest_asyncio.fixture
async def api(given: Given) -> AsyncIterator[KubernetesApi]:
    """The adapter, with small pages."""
    made = KubernetesApi(given.kubeconfig, page_size=2)
    yield made
    await made.close()


def make_pod(client: httpx.Client, name: str) -> dict[str, Any]:
    """Create a Pod without a node."""
    body = {
        "metadata": {"name": name},
        "spec": {
            "automountServiceAccountToken": False,
            "containers": [{"name": "c", "image": "x", "ports": [{"containerPort": 80}]}],
        },
    }
    answer = client.post(PODS, json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def label_pod(client: httpx.Client, name: str) -> None:
    """Modify a Pod."""
    answer = client.patch(
        f"{PODS}/{name}",
        content=json.dumps({"metadata": {"labels": {"a": "b"}}}),
        headers=MERGE_PATCH,
    )
    assert answer.status_code == 200, answer.text


def drop_pod(client: httpx.Client, name: str) -> None:
    """Delete a Pod at once."""
    answer = client.delete(f"{PODS}/{name}", params={"gracePeriodSeconds": "0"})
    assert answer.status_code == 200, answer.text


async def read_watch(api: KubernetesApi, version: str, timeout_s: int) -> None:
    """Read a watch of Pods to its end; raises what an ERROR event says."""
    async with asyncio.timeout(15):
        async for events in api.watch(KINDS["pod"], version, timeout_s):
            for event in events:
                if event.type == "ERROR":
                    raise error_of_event(KINDS["pod"], event)


async def keys(api: KubernetesApi, kind: Kind) -> tuple[list[str], str, int]:
    """(keys, version, number of pages) of a list."""
    found, version, pages = [], "", 0
    async for page in api.pages(kind):
        pages += 1
        version = page.metadata.resource_version
        found += [identify(kind.name, raw).key for raw in page.items or ()]
    return found, version, pages


async def test_every_kind_can_be_listed(api: KubernetesApi) -> None:
    """Each collection has a version and the objects that every cluster has."""
    for kind in KINDS.values():
        try:
            _found, version, _pages = await keys(api, kind)
        except NotServedError:
            assert kind.optional
            continue
        assert version.isdecimal()
    found, _version, _pages = await keys(api, KINDS["service"])
    assert "default/kubernetes" in found


async def test_pages(api: KubernetesApi, client: httpx.Client) -> None:
    """A list in pages shows each object once, all at one version, whatever happens meanwhile."""
    for i in range(5):
        make_pod(client, f"page-{i}")
    found, versions = [], []
    async for page in api.pages(KINDS["pod"]):
        found += [identify("pod", raw).key for raw in page.items or ()]
        versions.append(page.metadata.resource_version)
        if len(versions) == 1:
            make_pod(client, "during")
    assert [key for key in found if key.startswith("default/page-")] == [
        f"default/page-{i}" for i in range(5)
    ]
    assert len(versions) >= 3
    assert len(set(versions)) == 1
    for name in [f"page-{i}" for i in range(5)] + ["during"]:
        drop_pod(client, name)


async def test_metadata_agrees_with_the_list(api: KubernetesApi, client: httpx.Client) -> None:
    """The list of metadata names the same objects in the same versions."""
    make_pod(client, "meta")
    metadata = {}
    async for page in api.metadata(KINDS["pod"]):
        for obj in page.items or ():
            metadata[obj.metadata.name] = (obj.metadata.uid, obj.metadata.resource_version)
    full = {}
    async for listed in api.pages(KINDS["pod"]):
        for raw in listed.items or ():
            identity = identify("pod", raw)
            full[identity.key.split("/")[1]] = (identity.uid, identity.resource_version)
    assert metadata == full
    assert metadata["meta"][0]
    drop_pod(client, "meta")


async def test_watch_from_a_list(api: KubernetesApi, client: httpx.Client) -> None:
    """What happens after a list comes as events, in order, with growing versions."""
    _found, version, _pages = await keys(api, KINDS["pod"])
    make_pod(client, "seen")
    label_pod(client, "seen")
    drop_pod(client, "seen")
    seen: list[tuple[str, int]] = []
    async with asyncio.timeout(20), aclosing(api.watch(KINDS["pod"], version, 30)) as watch:
        async for events in watch:
            for event in events:
                identity = identify("pod", event.object)
                if identity.key == "default/seen":
                    seen.append((event.type, int(identity.resource_version)))
            if seen and seen[-1][0] == "DELETED":
                break
    types = [what for what, _version in seen]
    assert types[0] == "ADDED"
    assert "MODIFIED" in types
    versions = [number for _what, number in seen]
    assert versions == sorted(set(versions))


async def test_watch_ends_after_its_time(api: KubernetesApi) -> None:
    """The server ends the watch after timeoutSeconds, properly."""
    _found, version, _pages = await keys(api, KINDS["networkpolicy"])
    async with asyncio.timeout(15):
        async for events in api.watch(KINDS["networkpolicy"], version, 1):
            assert [event.type for event in events] in ([], ["BOOKMARK"])


async def test_watch_from_a_version_that_never_was(api: KubernetesApi) -> None:
    """A version too old, or no version at all, is an error we can tell apart, never silence."""
    with pytest.raises(ApiError):
        await read_watch(api, "no-version", 2)


async def test_unknown_kind(api: KubernetesApi) -> None:
    """A collection that is not served is `NotServedError`."""
    nothing = Kind("x", "/apis/networking.k8s.io/v1/nothings", KINDS["pod"].fact)
    with pytest.raises(NotServedError, match="404"):
        await keys(api, nothing)


async def test_wrong_token(given: Given, tmp_path: Path) -> None:
    """A refused login is an error that says so."""
    config = tmp_path / "kubeconfig"
    config.write_text(given.config.replace(given.server.token, "wrong"))
    api = KubernetesApi(str(config))
    with pytest.raises(ApiError, match="401"):
        await keys(api, KINDS["pod"])
    await api.close()


async def test_wrong_authority(given: Given, tmp_path: Path) -> None:
    """A server whose certificate nobody vouches for is not talked to."""
    config = json.loads(given.config)
    cluster = config["clusters"][0]["cluster"]
    cluster.pop("certificate-authority-data", None)
    cluster.pop("insecure-skip-tls-verify", None)
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    api = KubernetesApi(str(path))
    with pytest.raises(UnavailableError, match=r"(?i)certificate"):
        await keys(api, KINDS["pod"])
    await api.close()


async def test_whole_watcher_on_nats(given: Given, client: httpx.Client, tmp_path: Path) -> None:
    """API server -> watcher -> JetStream: facts, changes, a deleted stream, and sync requests."""
    server = NatsServer(tmp_path)
    try:
        server.start()
    except NatsServerError as error:
        pytest.skip(f"nats tier skipped: {error}")
    try:
        await _whole_watcher(given, client, server.url)
    finally:
        server.stop()


async def _whole_watcher(given: Given, client: httpx.Client, nats_url: str) -> None:
    world = World(given.kubeconfig)
    bus = await NatsBus.connect(Options(urls=(nats_url,)))
    await bus.ensure_streams()
    replica = world.start("w1", bus, page_size=2)
    sync = subjects.rpc("watcher", "sync")
    try:
        await replica.until(
            lambda: replica.watcher.leads() and replica.watcher.not_ready() is None, "in sync"
        )
        make_pod(client, "whole")
        synced = wire.decode(await bus.request(sync, b"{}", timeout_s=15), Synced)
        record = await bus.get_last(subjects.fact("pod", "default", "whole"))
        assert record is not None
        assert record.seq <= synced.fact_seq
        fact = msgspec.json.decode(record.data)
        assert fact["ports"] == [{"port": 80}]
        drop_pod(client, "whole")
        await bus.request(sync, b"{}", timeout_s=15)
        record = await bus.get_last(subjects.fact("pod", "default", "whole"))
        assert record is not None
        assert record.is_tombstone
    finally:
        await replica.stop()
        await bus.close()


def test_expired_is_its_own_error() -> None:
    """410 is told apart however it comes."""
    raw = msgspec.Raw(b'{"code":410,"reason":"Expired","message":"too old"}')
    error = error_of_event(KINDS["pod"], kube.WatchEvent("ERROR", raw))
    assert isinstance(error, ExpiredError)
