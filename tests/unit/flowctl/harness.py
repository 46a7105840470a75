"""flowctl in this process, on a memory bus, with the pipeline of `programs`."""

import asyncio
import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry

from dunlin import subjects, wire
from dunlin.bus.base import TOMBSTONE, Message
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.events.facts import Fact
from dunlin.events.intents import Intent
from dunlin.events.rpc import BarrierReply, BarrierRequest
from dunlin.events.state import Applied, Progress
from dunlin.service.metrics import Metrics
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.core.compiler import Compiler
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.handles import Handles
from dunlin_flowctl.metrics import FlowctlMetrics
from dunlin_flowctl.ownership import Ownership
from dunlin_flowctl.runner import SwitchRunner
from dunlin_flowctl.shell import Shell
from dunlin_flowctl.wait import Waiter
from tests.unit.flowctl.programs import FakeCompiler

DEADLINE_S = 20.0
FAST: dict[str, Any] = {
    "openflow_listen": ("tcp:127.0.0.1:0",),
    "audit_interval_s": 3600.0,
    "lease_ttl_s": 2.0,
    "applied_refresh_s": 0.2,
}


async def until(
    condition: Callable[[], Any], what: str = "", timeout_s: float = DEADLINE_S
) -> None:
    """Wait for a level; fails the test after `timeout_s` seconds."""
    try:
        async with asyncio.timeout(timeout_s):
            while not condition():
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"not within {timeout_s} s: {what or condition}") from None


class Cluster:
    """The bus and what the other services would publish there."""

    def __init__(self) -> None:
        self.server = MemoryServer()
        self.bus = MemoryBus(self.server)

    async def start(self) -> "Cluster":
        """Make the streams."""
        await self.bus.ensure_streams()
        return self

    async def intend(self, *intents: Intent) -> int:
        """Publish intents; the sequence of the last."""
        seq = 0
        for intent in intents:
            seq = await self.bus.publish(Message(intent.subject, wire.encode(intent)))
        return seq

    async def withdraw(self, intent: Intent) -> int:
        """Publish a tombstone."""
        return await self.bus.publish(Message(intent.subject, TOMBSTONE))

    async def know(self, fact: Fact) -> int:
        """Publish a fact."""
        return await self.bus.publish(Message(fact.subject, wire.encode(fact)))

    async def claim(self, *, complete: bool = True, fact_seq: int | None = None) -> None:
        """Ipam and planner have read everything there is now."""
        facts, intents = subjects.FACTS_STREAM, subjects.INTENTS_STREAM
        for service in ("ipam", "planner"):
            progress = Progress(
                service=service,
                replica=f"{service}-0",
                fact_epoch=await self.bus.epoch(facts),
                fact_seq=await self.bus.last_seq(facts) if fact_seq is None else fact_seq,
                intent_epoch=await self.bus.epoch(intents),
                intent_seq=await self.bus.last_seq(intents),
                complete=complete,
            )
            await self.bus.publish(Message(progress.subject, wire.encode(progress)))

    async def applied(self, node: str) -> Applied | None:
        """The newest acknowledgement of a node's switch."""
        record = await self.bus.get_last(subjects.applied(node))
        return wire.decode(record.data, Applied) if record else None

    async def barrier(
        self,
        node: str,
        revision: int,
        *,
        timeout_ms: int = 10_000,
        swept: bool = False,
        prepared: bool = False,
    ) -> BarrierReply:
        """Ask over the bus, as the agent does."""
        request = BarrierRequest(
            node=node,
            revision=revision,
            epoch=await self.bus.epoch(subjects.INTENTS_STREAM),
            timeout_ms=timeout_ms,
            swept=swept,
            prepared=prepared,
        )
        data = await self.bus.request(
            subjects.rpc("flowctl", "barrier", node), wire.encode(request), timeout_s=60.0
        )
        return wire.decode(data, BarrierReply)


class Flowctl:
    """One replica."""

    def __init__(
        self,
        cluster: Cluster,
        replica: str = "flowctl-0",
        compiler: Compiler | None = None,
        **settings: Any,
    ) -> None:
        self.cluster = cluster
        self.bus = MemoryBus(cluster.server)
        self.settings = dataclasses.replace(
            FlowctlSettings(), replica=replica, **{**FAST, **settings}
        )
        self.registry = CollectorRegistry()
        self.metrics = FlowctlMetrics(self.registry)
        ownership = Ownership(self.bus, replica, self.settings.lease_ttl_s)
        desired = Desired(compiler or FakeCompiler())
        self.handles = Handles(self.settings, self.metrics, self.bus, desired, ownership)
        self.shell = Shell(self.handles, Metrics("flowctl", "0"))
        self.waiter = Waiter(self.handles)
        self._tasks: list[asyncio.Task[Any]] = []

    async def start(self) -> "Flowctl":
        """Listen and follow."""
        await self.shell.listener.start()
        work: Iterable[Any] = (
            self.shell.read_intents(),
            self.shell.read_facts(),
            self.shell.read_state(),
            self.shell.publisher.run(),
            self.shell.auditor.run(),
            self.handles.ownership.follow(),
            self.handles.ownership.beat(),
            self.handles.ownership.watch(),
            self.waiter.serve(),
        )
        self._tasks = [asyncio.create_task(item) for item in work]
        return self

    @property
    def port(self) -> int:
        """Where switches connect."""
        return self.shell.listener.addresses[0].port

    async def stop(self) -> None:
        """As SIGTERM does; a task that failed fails the test."""
        await self.shell.listener.close()
        for task in self._tasks:
            task.cancel()
        results = await asyncio.gather(*self._tasks, return_exceptions=True)
        errors = [r for r in results if isinstance(r, Exception)]
        assert not errors, errors

    async def synced(self, node: str) -> SwitchRunner:
        """Wait until the switch of `node` is owned and compared."""

        def ready() -> bool:
            runner = self.handles.runners.get(node)
            return runner is not None and runner.switch is not None and runner.switch.synced

        await until(ready, f"{node} synced")
        return self.handles.runners[node]

    def sample(self, name: str, **labels: str) -> float:
        """A metric's value, 0 where there is none."""
        return self.registry.get_sample_value(name, labels) or 0.0
