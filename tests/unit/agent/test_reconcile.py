"""When conntrack is looked through, and that only what two looks find is removed."""

import asyncio
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from dunlin import wire
from dunlin.bus.base import TOMBSTONE, Batch, Record
from dunlin.events.state import Applied
from dunlin.openflow.codec import CtFlush
from dunlin.service.metrics import Metrics
from dunlin.service.pulse import Pulse
from dunlin_agent.conntrack import shell
from dunlin_agent.conntrack.core import parse
from dunlin_agent.conntrack.shell import CONNECTIONS_MAX, Reconcile
from dunlin_agent.intents import Intents
from dunlin_agent.metrics import AgentMetrics
from tests.unit.agent.test_conntrack import SWITCH, service

STALE = (
    "udp,orig=(src=10.0.0.9,dst=10.96.0.1,sport={},dport=53),"
    "reply=(src=10.0.0.2,dst=10.0.0.9,sport=8053,dport={}),zone=64000,mark=1"
)


class Facts:
    """What the reconciliation needs of them."""

    def __init__(self) -> None:
        self.pulse = Pulse()
        self.applied: Applied | None = None

    def hear(self, **changes: Any) -> None:
        """The switch's owner says something."""
        values: dict[str, Any] = {
            "node": "n1", "dpid": 1, "revision": 9, "epoch": "e", "connected": True,
            "owner": "f-0", "master_since_ms": 1,
        }  # fmt: skip
        self.applied = Applied(**(values | changes))
        self.pulse.beat()


class Vswitchd:
    """A conntrack table of these source ports, all of them stale."""

    def __init__(self) -> None:
        self.ports = {1}
        self.looks = 0
        self.count: int | None = None
        self.then: list[set[int]] = []

    async def call(self, command: str, *_arguments: str) -> str:
        """As ovs-vswitchd's control socket."""
        if command == "dpctl/ct-get-nconns":
            return f"{len(self.ports) if self.count is None else self.count}\n"
        self.looks += 1
        found = "\n".join(STALE.format(port, port) for port in sorted(self.ports))
        if self.then:
            self.ports = self.then.pop(0)
        return found


class Site:
    """A reconciliation with everything around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        metrics = AgentMetrics(Metrics("agent", "0"))
        self.facts, self.vswitchd = Facts(), Vswitchd()
        self.intents = Intents(None, "n1", metrics)  # type: ignore[arg-type]
        facts: Any = self.facts
        vswitchd: Any = self.vswitchd
        self.reconcile = Reconcile(Path("/nowhere"), facts, self.intents, vswitchd, metrics)
        self.removed: list[CtFlush] = []
        monkeypatch.setattr(shell, "PAUSE_SECONDS", 0.01)
        monkeypatch.setattr(shell, "flush_connections", self._flush)
        self.tell(SWITCH, service(1, "10.0.0.1"))

    async def _flush(self, _rundir: Path, _bridge: str, flushes: list[CtFlush]) -> None:
        self.removed += flushes
        self.vswitchd.ports -= {flush.orig.src_port for flush in flushes}

    def tell(self, *intents: Any, seq: int = 9, reset: bool = True) -> None:
        """One batch of the intent stream."""
        records = tuple(Record(i.subject, wire.encode(i), seq, 0) for i in intents)
        batch = Batch(records, "e", seq, caught_up=True, reset=reset)
        self.intents.take(batch, (self.reconcile,))


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Site:
    """With short pauses."""
    return Site(monkeypatch)


async def running(site: Site, level: Any, seconds: float = 2.0) -> None:
    """Run until a level holds; without one for a while, in which nothing must go wrong."""
    task = asyncio.create_task(site.reconcile.run())
    try:
        async with asyncio.timeout(seconds):
            while not level():
                await asyncio.sleep(0.005)
                assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_two_looks_then_it_is_removed(site: Site) -> None:
    """And a third finds nothing more; then there is peace until somebody new owns the switch."""
    site.facts.hear()
    await running(site, lambda: site.vswitchd.looks == 3)
    assert [flush.orig.src_port for flush in site.removed] == [1]
    assert site.removed[0].reply.src == ip_address("10.0.0.2")


async def test_what_only_one_look_sees_stays(site: Site) -> None:
    """It was being removed by flowctl, or has just been made anew by its client."""
    site.vswitchd.ports = {1, 2}
    site.vswitchd.then = [{2, 3}, {2, 3}, set()]
    site.facts.hear()
    await running(site, lambda: len(site.removed) > 0)
    assert [flush.orig.src_port for flush in site.removed] == [2]


async def test_not_while_the_switch_is_behind(site: Site) -> None:
    """An entry that its flows still ask for would only be made again."""
    for behind in ({"revision": 8}, {"pending": 1}, {"connected": False}, {"epoch": "other"}):
        site.facts.hear(**behind)
        with pytest.raises(TimeoutError):
            await running(site, lambda: site.vswitchd.looks, 0.1)
    site.facts.hear()
    await running(site, lambda: site.removed)


async def test_a_new_master_is_a_reason_to_look(site: Site) -> None:
    """Not each acknowledgement: a look costs the node's packets."""
    site.vswitchd.ports = set()
    site.facts.hear()
    task = asyncio.create_task(running(site, lambda: site.vswitchd.looks == 2))
    await asyncio.sleep(0.05)
    site.facts.hear(revision=10)
    await asyncio.sleep(0.05)
    assert site.vswitchd.looks == 1
    site.facts.hear(master_since_ms=2)
    await task


async def test_too_many_connections_are_said_so(site: Site) -> None:
    """No dump of them, and the metric says it."""
    site.vswitchd.count = CONNECTIONS_MAX + 1
    site.facts.hear()
    with pytest.raises(TimeoutError):
        await running(site, lambda: site.vswitchd.looks, 0.1)


def test_an_intent_that_cannot_be_read_changes_nothing(site: Site) -> None:
    """What stood of it stands; a tombstone ends it."""
    subject = service(1, "10.0.0.1").subject
    (good,) = parse(STALE.format(1, 1).replace("src=10.0.0.2", "src=10.0.0.1"))
    for seq, (data, stale) in enumerate(((b"\xff", False), (TOMBSTONE, True)), 10):
        batch = Batch((Record(subject, data, seq, 0),), "e", seq, caught_up=True)
        site.intents.take(batch, (site.reconcile,))
        assert bool(site.reconcile._core.stale([good])) is stale
