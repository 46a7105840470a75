"""Listens to the intents of Services, opens and closes ports, answers."""

import asyncio
import time
from collections.abc import Callable
from typing import Final

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Bus, Record
from dunlin.events.facts import NodeFact
from dunlin.events.intents import LocalServiceIntent, ServicePortIntent
from dunlin.model.ids import IntentId
from dunlin_agent.health.core import HealthChecks, ProxyHealth, Reply
from dunlin_agent.health.http import listen
from dunlin_agent.health.kubeproxy import KubeProxy
from dunlin_agent.intents import NodeIntent
from dunlin_agent.metrics import AgentMetrics

RETRY_SECONDS: Final = 5.0
LOOK_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


class Health:
    """`problem`: why the node's switch is not up to date, None when it is. `port` of healthz."""

    def __init__(
        self,
        bus: Bus,
        node: str,
        port: int,
        problem: Callable[[], str | None],
        metrics: AgentMetrics,
        proxy: KubeProxy,
    ) -> None:
        self._bus = bus
        self._node = node
        self._port = port
        self._problem = problem
        self._metrics = metrics
        self._kube_proxy = proxy
        self._checks = HealthChecks()
        self._proxy = ProxyHealth()
        self._eligible = True
        self._servers: dict[int, asyncio.Server] = {}
        self._changed = asyncio.Event()

    # --- in ---------------------------------------------------------------------------------------

    def put(self, intent: NodeIntent, seq: int) -> None:
        """A newer version of an intent."""
        if isinstance(intent, ServicePortIntent | LocalServiceIntent):
            self._checks.put(intent)
        if isinstance(intent, ServicePortIntent):
            self._kube_proxy.service_read(seq, intent)

    def remove(self, intent_id: IntentId) -> None:
        """An intent is gone."""
        self._checks.remove(intent_id)

    def clear(self) -> None:
        """Nothing is known; ports stay open."""
        self._checks.clear()
        self._kube_proxy.forget()

    def settled(self) -> None:
        """Not before: ports of a new stream's first half would close those that stay."""
        self._changed.set()

    async def follow_node(self) -> None:
        """Whether this node is going away; for ever."""
        subject = subjects.fact("node", "", self._node)
        async for batch in self._bus.follow(subjects.FACTS_STREAM, [subject]):
            for record in batch.records:
                self._take_node(record)

    def _take_node(self, record: Record) -> None:
        if record.is_tombstone:
            self._eligible = False
            return
        try:
            self._eligible = not wire.decode(record.data, NodeFact).deleting
        except (msgspec.MsgspecError, ValueError) as error:
            self._metrics.common.bad_input("NodeFact", "unreadable")
            log.warning("unreadable message", subject=record.subject, error=str(error))

    async def watch(self) -> None:
        """Whether the switch is up to date; for ever."""
        while True:
            self._observe()
            await asyncio.sleep(LOOK_SECONDS)

    def _observe(self) -> None:
        self._proxy.observe(self._problem(), time.monotonic(), time.time())

    # --- out --------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Listen where Services want it, and on healthz; for ever."""
        while True:
            self._changed.clear()
            failed = await self._listen()
            self._metrics.health_ports.set(len(self._servers))
            try:
                async with asyncio.timeout(RETRY_SECONDS if failed else None):
                    await self._changed.wait()
            except TimeoutError:
                continue  # a port that was taken may be free now

    async def _listen(self) -> bool:
        """True when a port cannot be had."""
        wanted = set(self._checks.ports()) | ({self._port} if self._port else set())
        for port in self._servers.keys() - wanted:
            self._servers.pop(port).close()
            log.info("health check port closed", port=port)
        failed = False
        for port in sorted(wanted - self._servers.keys()):
            try:
                self._servers[port] = await listen(port, self._answer(port))
            except OSError as error:
                failed = True
                self._metrics.health_bind_errors.inc()
                name = "/".join(self._checks.ports().get(port, ("", "healthz")))
                log.warning("no health check port", port=port, service=name, error=str(error))
            else:
                log.info("health check port open", port=port)
        return failed

    def _answer(self, port: int) -> Callable[[str], Reply]:
        if port == self._port:
            return self._healthz
        return lambda _path: self._service(port)

    def _service(self, port: int) -> Reply:
        self._observe()
        return self._checks.answer(port, healthy=self._proxy.healthy(time.monotonic()))

    def _healthz(self, path: str) -> Reply:
        self._observe()
        return self._proxy.answer(path, time.monotonic(), time.time(), eligible=self._eligible)

    async def close(self) -> None:
        """Listen no more."""
        for server in self._servers.values():
            server.close()
        self._servers.clear()
