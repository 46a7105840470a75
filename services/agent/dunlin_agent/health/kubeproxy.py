"""kube-proxy's metrics of this node, where kube-proxy has them: port 10249."""

import asyncio
import time
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from dunlin.events.intents import ServicePortIntent
from dunlin.events.state import Applied
from dunlin.service.kubeproxy import FAMILIES, KubeProxyHistograms, families_of
from dunlin_agent.health.core import Reply
from dunlin_agent.health.http import listen
from dunlin_agent.health.programming import Programming

RETRY_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


def now_ms() -> int:
    """Unix milliseconds."""
    return int(time.time() * 1000)


class KubeProxy:
    """
    Histograms of one node, filled from intents and acknowledgements that the agent reads anyway.

    A registry of its own: where one Prometheus reads this and the agent's /metrics, nothing is
    twice.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._histograms = KubeProxyHistograms(self._registry)
        started = now_ms()
        self._programming = {family: Programming(started) for family in FAMILIES}
        self._synced: tuple[int, float] | None = None

    def forget(self) -> None:
        """The intent stream is new."""
        for programming in self._programming.values():
            programming.forget()

    def service_read(self, seq: int, intent: ServicePortIntent) -> None:
        """An intent of a Service of the stream's sequence `seq`."""
        for family in families_of(intent):
            found = self._programming[family].changed(seq, intent.trigger_ms, now_ms())
            self._observe(family, found)

    def applied(self, applied: Applied) -> None:
        """The switch's newest acknowledgement."""
        for family, programming in self._programming.items():
            self._observe(family, programming.applied(applied.revision, now_ms()))
        if applied.sync_ms is None or (applied.revision, applied.sync_ms) == self._synced:
            return
        self._synced = (applied.revision, applied.sync_ms)
        self._histograms.synced(applied.sync_ms / 1000)

    def _observe(self, family: str, found: list[float]) -> None:
        for seconds in found:
            self._histograms.programmed((family,), seconds)

    def answer(self, path: str) -> Reply:
        """GET /metrics, in Prometheus' text form."""
        if path != "/metrics":
            return Reply(404, b"", content_type="text/plain")
        return Reply(200, generate_latest(self._registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    async def serve(self, bind: str) -> None:
        """Listen on HOST:PORT, "" is nowhere; for ever."""
        host, _, port = bind.rpartition(":")
        while True:
            if not bind:
                await asyncio.Event().wait()
            try:
                server = await listen(int(port), self.answer, host.strip("[]") or None)
            except OSError as error:
                log.warning("no port for kube-proxy's metrics", bind=bind, error=str(error))
                await asyncio.sleep(RETRY_SECONDS)
                continue
            async with server:
                await server.serve_forever()
