"""A watcher, its bus and its API server in one process, and how to wait for what they do."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from dunlin import subjects
from dunlin.bus import leases
from dunlin.bus.base import Bus
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.service.metrics import Metrics
from dunlin_watcher.adapters.kubernetes import KubernetesApi
from dunlin_watcher.config import Settings
from dunlin_watcher.metrics import WatcherMetrics
from dunlin_watcher.shell import Watcher
from tests.scenario.watcher.fake_api import FakeApi

DEADLINE_S = 15.0


@dataclass
class Replica:
    """One running watcher."""

    watcher: Watcher
    api: KubernetesApi
    metrics: Metrics
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    async def kill(self) -> None:
        """End it without any farewell: the lease stays taken."""
        self.watcher.leases = _DeafLeases(self.watcher.leases)
        await self.stop()

    async def stop(self) -> None:
        """End it cleanly."""
        for task in self.tasks:
            task.cancel()
        if self.tasks:
            await asyncio.wait(self.tasks)
        for task in self.tasks:
            if not task.cancelled() and task.exception() is not None:
                raise AssertionError("a task of the watcher failed") from task.exception()
        self.tasks.clear()
        await self.api.close()

    async def until(self, reached: Callable[[], bool], what: str = "") -> None:
        """Wait for a level of this watcher's state or of the bus."""
        try:
            async with asyncio.timeout(DEADLINE_S):
                while True:
                    pulse = self.watcher.pulse.take()
                    if reached():
                        return
                    for task in self.tasks:
                        assert not task.done(), f"{task.get_name()} ended: {task}"
                    with contextlib.suppress(TimeoutError):
                        # Some levels (leases, statuses) change without a pulse.
                        await asyncio.wait_for(pulse.wait(), 0.05)
        except TimeoutError:
            raise AssertionError(f"never reached: {what or reached}") from None

    def count(self, metric: str, **labels: str) -> float:
        """A sample of the registry, 0 if there is none."""
        return self.metrics.registry.get_sample_value(metric, labels) or 0.0


class _DeafLeases:
    """Leases of a killed process: nothing is given back."""

    def __init__(self, leases: Any) -> None:
        self._leases = leases

    def __getattr__(self, name: str) -> Any:
        return getattr(self._leases, name)

    async def release(self, lease: Any) -> None:
        """Do nothing."""


class World:
    """Watchers on one API server (by kubeconfig) and buses of the caller's choice."""

    def __init__(self, kubeconfig: str) -> None:
        self.kubeconfig = kubeconfig
        self.replicas: list[Replica] = []

    def start(self, name: str, bus: Bus, **settings: Any) -> Replica:
        """Start one watcher."""
        chosen: dict[str, Any] = {"page_size": 3, "lease_ttl_s": 1.0, "replica": name, **settings}
        options = Settings(kubeconfig=self.kubeconfig, **chosen)
        metrics = Metrics("watcher", "0")
        own = WatcherMetrics(metrics)
        api = KubernetesApi(options.kubeconfig, page_size=options.page_size)
        watcher = Watcher(bus, leases(bus), api, options, own)
        own.observe(watcher.state, watcher.statuses)
        replica = Replica(watcher, api, metrics)
        replica.tasks = [
            asyncio.create_task(watcher.follow(), name="follow"),
            asyncio.create_task(watcher.lead(), name="lead"),
        ]
        self.replicas.append(replica)
        return replica

    async def close(self) -> None:
        """Stop every watcher."""
        for replica in self.replicas:
            await replica.stop()


class FakeWorld(World):
    """The scriptable API server and the bus in memory."""

    def __init__(self, api: FakeApi, folder: Path) -> None:
        super().__init__(api.kubeconfig(folder))
        self.api = api
        self.server = MemoryServer()
        self.bus = MemoryBus(self.server)

    async def watcher(self, name: str = "w1", **settings: Any) -> Replica:
        """Start one."""
        return self.start(name, MemoryBus(self.server), **settings)

    async def synced(self, name: str = "w1", **settings: Any) -> Replica:
        """Start one and wait until it is active and in sync."""
        replica = await self.watcher(name, **settings)
        await replica.until(
            lambda: replica.watcher.leads() and replica.watcher.not_ready() is None, "in sync"
        )
        return replica

    def facts(self, kind: str) -> dict[str, dict[str, Any]]:
        """What the stream holds of one kind now: `<namespace>/<name>` -> fact without meta."""
        stream = self.server.streams.get(subjects.FACTS_STREAM)
        found = {}
        for subject, records in (stream.by_subject if stream else {}).items():
            _fact, its_kind, namespace, name = subjects.split(subject)
            if its_kind == kind and records and not records[-1].is_tombstone:
                fact = msgspec.json.decode(records[-1].data)
                fact.pop("meta", None)
                found[f"{namespace}/{name}" if namespace else name] = fact
        return found

    @property
    def stored(self) -> int:
        """How many messages the fact stream has ever taken."""
        stream = self.server.streams.get(subjects.FACTS_STREAM)
        return stream.seq if stream else 0

    async def close(self) -> None:
        """Stop everything."""
        await super().close()
        await self.api.stop()


@contextlib.asynccontextmanager
async def a_world(folder: Path) -> AsyncIterator[FakeWorld]:
    """A running API server and an empty bus."""
    api = FakeApi()
    await api.start()
    world = FakeWorld(api, folder)
    await world.bus.ensure_streams()
    try:
        yield world
    finally:
        await world.close()
