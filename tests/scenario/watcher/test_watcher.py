"""The whole watcher against an API server that can be scripted, and the bus in memory."""

import asyncio
import json
from collections.abc import AsyncIterable, Sequence
from pathlib import Path

import pytest

from dunlin import subjects, wire
from dunlin.bus.base import BusError, Message
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.events.rpc import Failure, Synced, SyncRequest
from dunlin_watcher import reflector
from dunlin_watcher.adapters import kubernetes
from dunlin_watcher.adapters.errors import UnavailableError
from dunlin_watcher.kinds import KINDS
from tests.scenario.watcher.cluster import FakeWorld
from tests.scenario.watcher.fake_api import refuse, stream
from tests.scenario.watcher.objects import endpoint_slice, node, pod, service


def populate(world: FakeWorld) -> None:
    """Two nodes, ten Pods, a Service with a slice."""
    world.api.put("node", node("n1"))
    world.api.put("node", node("n2", "192.0.2.2"))
    world.api.put("namespace", {"metadata": {"name": "default"}})
    for i in range(10):
        world.api.put("pod", pod(f"p{i}", f"10.244.1.{i + 5}"))
    world.api.put("service", service("web"))
    world.api.put("endpointslice", endpoint_slice("web-1", "web", "10.244.1.5", "10.244.1.6"))


async def test_first_list_and_sync_fact(world: FakeWorld) -> None:
    """Everything listed (in pages) becomes facts, and the sync fact comes after all of them."""
    populate(world)
    replica = await world.synced()
    assert len(world.facts("pod")) == 10
    assert world.facts("node")["n2"]["ips"] == ["192.0.2.2"]
    assert world.facts("service")["default/web"]["cluster_ips"] == ["10.96.0.10"]
    assert [e["ip"] for e in world.facts("endpointslice")["default/web-1"]["endpoints"]] == [
        "10.244.1.5",
        "10.244.1.6",
    ]
    sync = world.server.streams[subjects.FACTS_STREAM].by_subject[
        subjects.fact("sync", "", "watcher")
    ]
    assert sync[-1].seq == world.stored
    assert replica.count("dunlin_watcher_published_total", kind="pod", what="fact") == 10
    assert world.api.requests["list", "pod"] == 4


class GatedBus(MemoryBus):
    """Holds back batches of messages until the gate is opened."""

    def __init__(self, server: MemoryServer) -> None:
        super().__init__(server)
        self.gate = asyncio.Event()

    async def publish_many(self, messages: Sequence[Message]) -> list[int | BusError]:
        """Wait, then do it."""
        await self.gate.wait()
        return await super().publish_many(messages)


async def test_sync_fact_waits_for_all_facts(world: FakeWorld) -> None:
    """However long publishing takes, the sync fact is the last of the first list."""
    populate(world)
    bus = GatedBus(world.server)
    replica = world.start("w1", bus)
    await replica.until(
        lambda: replica.watcher.state.complete and world.api.requests["watch", "pod"] == 1
    )
    assert replica.watcher.not_ready() == "still publishing the first list"
    assert world.stored == 0
    bus.gate.set()
    await replica.until(lambda: replica.watcher.not_ready() is None)
    sync = world.server.streams[subjects.FACTS_STREAM].by_subject[
        subjects.fact("sync", "", "watcher")
    ]
    assert [record.seq for record in sync] == [world.stored]


async def test_changes_follow(world: FakeWorld) -> None:
    """Added, modified and deleted objects become facts and tombstones; equal ones nothing."""
    populate(world)
    replica = await world.synced()
    world.api.put("pod", pod("new", "10.244.1.99"))
    world.api.put("pod", pod("p1", "10.244.1.77"))
    world.api.delete("pod", "default/p2")
    await replica.until(
        lambda: (
            "default/new" in world.facts("pod")
            and world.facts("pod")["default/p1"]["ips"] == ["10.244.1.77"]
            and "default/p2" not in world.facts("pod")
        )
    )
    before = world.stored
    changed = pod("p3", "10.244.1.8")
    changed["status"]["startTime"] = "2026-01-01T00:00:00Z"
    world.api.put("pod", changed)
    world.api.put("pod", pod("marker", "10.244.1.98"))
    await replica.until(lambda: "default/marker" in world.facts("pod"))
    assert world.stored == before + 1


async def test_duplicate_events(world: FakeWorld) -> None:
    """An event that comes twice, also an old one, changes nothing."""
    populate(world)
    replica = await world.synced()
    world.api.put("pod", pod("new", "10.244.1.99"))
    await replica.until(lambda: "default/new" in world.facts("pod"))
    before = world.stored
    world.api.repeat("pod", 1)
    world.api.repeat("pod", 1)
    world.api.put("pod", pod("marker", "10.244.1.98"))
    await replica.until(lambda: "default/marker" in world.facts("pod"))
    assert world.stored == before + 1


async def test_connection_lost(world: FakeWorld) -> None:
    """After a dropped connection the watch goes on from its last version, without a new list."""
    populate(world)
    replica = await world.synced()
    world.api.put("pod", pod("before", "10.244.1.99"))
    await replica.until(lambda: "default/before" in world.facts("pod"))
    world.api.cut()
    world.api.put("pod", pod("after", "10.244.1.98"))
    await replica.until(lambda: "default/after" in world.facts("pod"))
    assert world.api.requests["list", "pod"] == 4
    assert (
        replica.count("dunlin_watcher_watch_restarts_total", kind="pod", reason="connection") >= 1
    )


async def test_broken_in_the_middle_of_a_line(world: FakeWorld) -> None:
    """Half a line is dropped; the whole lines before it count, and the rest comes again."""
    populate(world)
    whole = pod("whole", "10.244.1.50")
    whole["metadata"] |= {"resourceVersion": "99", "uid": "u"}
    line = json.dumps({"type": "ADDED", "object": whole}).encode() + b"\n"
    world.api.script["watch", "pod"].append(stream(line, line[: len(line) // 2], then_break=True))
    replica = await world.synced()
    await replica.until(lambda: world.api.requests["watch", "pod"] >= 2)
    assert world.api.versions["pod"][1] == "99"
    world.api.put("pod", pod("after", "10.244.1.98"))
    await replica.until(lambda: {"default/whole", "default/after"} <= world.facts("pod").keys())
    assert world.api.requests["list", "pod"] == 4


@pytest.mark.parametrize("how", ["status", "event"])
async def test_gone(world: FakeWorld, how: str) -> None:
    """410, as status or as event: list again, with tombstones for what vanished meanwhile."""
    populate(world)
    replica = await world.synced()
    if how == "status":
        world.api.script["watch", "pod"].append(refuse(410, "Expired"))
        world.api.cut()
    else:
        world.api.frozen.add("pod")
    world.api.delete("pod", "default/p3")
    world.api.put("pod", pod("p4", "10.244.1.77"))
    world.api.compact()
    if how == "event":
        world.api.frozen.clear()
        world.api.cut()
    await replica.until(
        lambda: (
            "default/p3" not in world.facts("pod")
            and world.facts("pod")["default/p4"]["ips"] == ["10.244.1.77"]
        )
    )
    assert len(world.facts("pod")) == 9
    assert replica.count("dunlin_watcher_lists_total", kind="pod", reason="expired") == 1
    world.api.put("pod", pod("later", "10.244.1.60"))
    await replica.until(lambda: "default/later" in world.facts("pod"))


async def test_continue_token_expired(world: FakeWorld) -> None:
    """A list whose continue token expires is begun again; what it had not shown is not deleted."""
    populate(world)
    real = world.api._list

    def compact_once(*args: object, **kwargs: bool) -> object:
        world.api._list = real  # type: ignore[method-assign]
        answer = real(*args, **kwargs)  # type: ignore[arg-type]
        world.api.revision += 1
        world.api.compact()
        return answer

    world.api._list = compact_once  # type: ignore[method-assign, assignment]
    await world.synced()
    assert len(world.facts("pod")) == 10


async def test_garbage_line(world: FakeWorld) -> None:
    """A line that is no event: a named error, a metric, and a new list; other kinds go on."""
    populate(world)
    world.api.script["watch", "pod"].append(stream(b"<html>proxy error</html>\n"))
    replica = await world.synced()
    await replica.until(lambda: world.api.requests["watch", "pod"] >= 2)
    assert replica.count("dunlin_watcher_lists_total", kind="pod", reason="garbage") == 1
    bad = replica.count("dunlin_bad_input_total", service="watcher", kind="pod", reason="garbage")
    assert bad == 1
    assert "<html>proxy error" in replica.watcher.statuses["pod"].last_error
    world.api.put("pod", pod("after", "10.244.1.98"))
    await replica.until(lambda: "default/after" in world.facts("pod"))


async def test_garbage_list(world: FakeWorld) -> None:
    """A list that is no JSON is an error of that kind alone, tried again."""
    populate(world)
    world.api.script["list", "service"].append(stream(b'{"items": [1, 2'))
    replica = await world.synced()
    assert "default/web" in world.facts("service")
    errors = replica.count(
        "dunlin_watcher_api_errors_total", kind="service", what="list", reason="garbage"
    )
    assert errors == 1


async def test_bookmarks_move_the_version(world: FakeWorld) -> None:
    """After a bookmark a broken watch goes on from the bookmark's version."""
    populate(world)
    replica = await world.synced()
    await replica.until(lambda: world.api.requests["watch", "pod"] == 1)
    world.api.bookmark("pod")
    version = str(world.api.revision)
    await replica.until(lambda: replica.watcher.state.kinds["pod"].version == version)
    world.api.cut()
    await replica.until(lambda: world.api.requests["watch", "pod"] == 2)
    assert world.api.versions["pod"][-1] == version


async def test_too_many_requests(world: FakeWorld) -> None:
    """429 with Retry-After is obeyed, and 5xx are tried again."""
    populate(world)
    world.api.script["list", "pod"] += [
        refuse(429, "TooManyRequests", Retry_After="1"),
        refuse(503),
    ]
    started = asyncio.get_running_loop().time()
    replica = await world.synced()
    assert asyncio.get_running_loop().time() - started >= 1.0
    assert len(world.facts("pod")) == 10
    for reason in ("http_429", "http_503"):
        count = replica.count(
            "dunlin_watcher_api_errors_total", kind="pod", what="list", reason=reason
        )
        assert count == 1


async def test_optional_kind_absent(world: FakeWorld) -> None:
    """A server without ServiceCIDRs is in sync all the same; one without Pods is not."""
    populate(world)
    world.api.always["list", "servicecidr"] = refuse(404, "NotFound")
    world.api.always["metadata", "servicecidr"] = refuse(404, "NotFound")
    replica = await world.synced()
    assert replica.watcher.statuses["servicecidr"].absent
    reply = await world.bus.request(subjects.rpc("watcher", "sync"), b"", timeout_s=5)
    assert wire.decode(reply, Synced).fact_seq >= 15


async def test_a_kind_that_appears_is_seen_by_the_next_sync(
    world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a CustomResourceDefinition stands, `dunlin wait` does not wait for the next look."""
    monkeypatch.setattr(reflector, "ABSENT_RETRY_S", 3600.0)
    populate(world)
    for what in ("list", "metadata"):
        world.api.always[what, "servicecidr"] = refuse(404, "NotFound")
    replica = await world.synced()
    assert replica.watcher.statuses["servicecidr"].absent
    assert not world.facts("servicecidr")
    for what in ("list", "metadata"):
        del world.api.always[what, "servicecidr"]
    extra = {"metadata": {"name": "extra"}, "spec": {"cidrs": ["10.200.0.0/16"]}}
    world.api.put("servicecidr", extra)
    reply = await world.bus.request(subjects.rpc("watcher", "sync"), b"", timeout_s=15)
    assert wire.decode(reply, Synced).fact_seq
    assert "extra" in world.facts("servicecidr")
    assert not replica.watcher.statuses["servicecidr"].absent


async def test_a_server_that_ends_every_watch_at_once_is_not_hammered(world: FakeWorld) -> None:
    """No busy loop: with every watch ended or refused at once, requests stay few."""
    populate(world)
    world.api.always["watch", "pod"] = stream(b"")
    world.api.always["watch", "service"] = refuse(500)
    world.api.always["watch", "node"] = refuse(410, "Expired")
    replica = await world.synced()
    await replica.until(lambda: world.api.requests["watch", "pod"] >= 4)
    for request in (("watch", "pod"), ("watch", "service"), ("watch", "node"), ("list", "node")):
        assert 2 <= world.api.requests[request] <= 12, request


async def test_deletes_missed_while_no_watcher_ran(world: FakeWorld) -> None:
    """What vanished while no watcher ran gets a tombstone, but only once its kind is listed."""
    populate(world)
    first = await world.synced()
    await first.stop()
    world.api.delete("pod", "default/p0")
    world.api.delete("service", "default/web")
    world.api.put("pod", pod("new", "10.244.1.99"))
    before = world.stored
    world.api.always["list", "service"] = refuse(503)
    second = await world.watcher("w2")
    await second.until(
        lambda: "default/p0" not in world.facts("pod") and "default/new" in world.facts("pod")
    )
    assert "default/web" in world.facts("service")
    del world.api.always["list", "service"]
    await second.until(lambda: "default/web" not in world.facts("service"))
    await second.until(lambda: second.watcher.not_ready() is None)
    # Two tombstones, one fact, one sync fact: what did not change was not written again.
    assert world.stored == before + 4


async def test_failover(world: FakeWorld) -> None:
    """A killed active watcher is replaced within 3 seconds of its lease's end."""
    populate(world)
    first = await world.synced("w1")
    second = await world.watcher("w2")
    await second.until(lambda: second.watcher.not_ready() is None, "standby is ready")
    assert not second.watcher.leads()
    lists = world.api.requests["list", "pod"]
    await first.kill()
    assert first.watcher.lease is None
    world.api.put("pod", pod("new", "10.244.1.99"))
    world.api.delete("pod", "default/p1")
    started = asyncio.get_running_loop().time()
    await second.until(
        lambda: "default/new" in world.facts("pod") and "default/p1" not in world.facts("pod")
    )
    assert asyncio.get_running_loop().time() - started < 1.0 + 3.0
    assert world.api.requests["list", "pod"] > lists


async def test_standby_keeps_no_watches(world: FakeWorld) -> None:
    """Only the active watcher talks to the API."""
    populate(world)
    first = await world.synced("w1")
    await first.until(lambda: all(world.api.requests["watch", kind] == 1 for kind in KINDS))
    before = world.api.requests.total()
    second = await world.watcher("w2")
    await second.until(lambda: second.watcher.not_ready() is None)
    assert len(second.watcher.state.kinds["pod"].entries) == 10
    assert world.api.requests.total() == before


async def test_stream_deleted(world: FakeWorld) -> None:
    """A new epoch gets everything again, and a sync fact of its own."""
    populate(world)
    replica = await world.synced()
    old = replica.watcher.state.epoch
    lists = world.api.requests["list", "pod"]
    world.server.delete_stream(subjects.FACTS_STREAM)
    await world.bus.ensure_streams()
    await replica.until(
        lambda: replica.watcher.state.epoch != old and replica.watcher.not_ready() is None
    )
    assert len(world.facts("pod")) == 10
    assert "watcher" in world.facts("sync")
    assert world.api.requests["list", "pod"] == lists


async def test_bus_down(world: FakeWorld) -> None:
    """While the bus is away nothing is lost: the newest state is published when it is back."""
    populate(world)
    replica = await world.synced(lease_ttl_s=30.0)
    world.server.stop()
    world.api.put("pod", pod("p1", "10.244.1.70"))
    world.api.put("pod", pod("p1", "10.244.1.71"))
    world.api.delete("pod", "default/p2")
    await replica.until(
        lambda: replica.count("dunlin_watcher_refused_total", reason="unavailable") >= 2
    )
    world.server.start()
    await replica.until(
        lambda: (
            world.facts("pod")["default/p1"]["ips"] == ["10.244.1.71"]
            and "default/p2" not in world.facts("pod")
        )
    )


async def test_foreign_writer(world: FakeWorld) -> None:
    """What somebody else writes on the watcher's subjects is put right."""
    populate(world)
    replica = await world.synced()
    await world.bus.publish(Message(subjects.fact("pod", "default", "p1"), b""))
    await world.bus.publish(Message(subjects.fact("pod", "default", "p2"), b"{nonsense"))
    ghost = b'{"kind":"pod","namespace":"default","name":"ghost"}'
    await world.bus.publish(Message(subjects.fact("pod", "default", "ghost"), ghost))
    wanted = {f"default/p{i}" for i in range(10)}
    await replica.until(
        lambda: replica.watcher.state.settled and world.stored >= 21, "six more messages"
    )
    assert world.facts("pod").keys() == wanted
    bad = replica.count("dunlin_bad_input_total", service="watcher", kind="fact", reason="fact")
    assert bad == 1


async def test_bad_objects(world: FakeWorld) -> None:
    """A bad part is left out, a bad object keeps its last good fact, both are named and counted."""
    populate(world)
    replica = await world.synced()
    good, bad = {"port": 80, "name": "a"}, {"port": 81, "name": "b", "protocol": "FOO"}
    world.api.put("service", service("x", good, bad))
    world.api.put("service", service("web", type="Nonsense"))
    world.api.put("pod", pod("p1", "10.244.1.999"))
    world.api.put("service", service("fine", ip="10.96.0.99"))
    await replica.until(lambda: {"default/x", "default/fine"} <= world.facts("service").keys())
    await replica.until(lambda: "ips" not in world.facts("pod")["default/p1"])
    assert [port["port"] for port in world.facts("service")["default/x"]["ports"]] == [80]
    assert world.facts("service")["default/web"]["cluster_ips"] == ["10.96.0.10"]
    assert replica.watcher.state.bad_objects() == {
        "pod default/p1": ['status.podIPs[0].ip: not an IP address: "10.244.1.999"'],
        "service default/web": ['spec.type: unknown type "Nonsense"'],
        "service default/x": ['spec.ports[1].protocol: unknown protocol "FOO"'],
    }
    count = replica.count(
        "dunlin_bad_input_total", service="watcher", kind="service", reason="protocol"
    )
    assert count == 1
    world.api.put("service", service("x", good))
    await replica.until(
        lambda: "service default/x" not in replica.watcher.state.bad_objects(), "it is good again"
    )


async def test_sync_request(world: FakeWorld) -> None:
    """The reply covers a change that the watch has not delivered when the request comes."""
    populate(world)
    replica = await world.synced()
    world.api.frozen.add("pod")
    world.api.put("pod", pod("new", "10.244.1.99"))
    world.api.delete("pod", "default/p1")
    request = wire.encode(SyncRequest(timeout_ms=300))
    reply = await world.bus.request(subjects.rpc("watcher", "sync"), request, timeout_s=5)
    failure = wire.decode(reply, Failure)
    assert failure.retry
    assert "pod default/" in failure.reason
    asking = asyncio.create_task(
        world.bus.request(subjects.rpc("watcher", "sync"), b"{}", timeout_s=10)
    )
    await replica.until(lambda: world.api.requests["metadata", "pod"] >= 5)
    world.api.frozen.clear()
    world.api.bookmark("node")
    synced = wire.decode(await asking, Synced)
    assert synced.fact_epoch == replica.watcher.state.epoch
    stream_ = world.server.streams[subjects.FACTS_STREAM]
    assert synced.fact_seq >= stream_.by_subject[subjects.fact("pod", "default", "new")][-1].seq
    assert synced.fact_seq >= stream_.by_subject[subjects.fact("pod", "default", "p1")][-1].seq


async def test_sync_request_on_a_server_without_partial_metadata(world: FakeWorld) -> None:
    """Plain lists do as well."""
    populate(world)
    world.api.partial_metadata = False
    await world.synced()
    reply = await world.bus.request(subjects.rpc("watcher", "sync"), b"{}", timeout_s=10)
    assert wire.decode(reply, Synced).fact_seq == world.stored


async def test_recreated_under_its_name(world: FakeWorld) -> None:
    """A Pod deleted and made anew with equal content is another Pod: its uid reaches the stream."""
    populate(world)
    replica = await world.synced()
    subject = subjects.fact("pod", "default", "p1")
    by_subject = world.server.streams[subjects.FACTS_STREAM].by_subject
    before = json.loads(by_subject[subject][-1].data)["meta"]["uid"]
    world.api.frozen.add("pod")
    world.api.delete("pod", "default/p1")
    world.api.put("pod", pod("p1", "10.244.1.6"))
    world.api.compact()
    world.api.frozen.clear()
    world.api.cut()
    await replica.until(
        lambda: json.loads(by_subject[subject][-1].data)["meta"]["uid"] != before,
        "the new uid is published",
    )


async def test_half_open_connection(
    world: FakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A watch that the server neither feeds nor ends is given up after its time and some."""
    monkeypatch.setattr(kubernetes, "WATCH_GRACE_S", 0.2)
    api = kubernetes.KubernetesApi(world.api.kubeconfig(tmp_path))
    with pytest.raises(UnavailableError, match=r"(?i)timeout"):
        await asyncio.wait_for(exhaust(api.watch(KINDS["pod"], "100", 1)), 10)
    await api.close()


async def exhaust(items: AsyncIterable[object]) -> None:
    """Read to the end."""
    async for _item in items:
        pass
