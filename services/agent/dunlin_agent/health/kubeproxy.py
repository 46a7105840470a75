"""kube-proxy's metrics of this node, where kube-proxy has them: port 10249."""

import asyncio
import time
from typing import Final

import structlog
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from dunlin.events.state import Applied
from dunlin.service.kubeproxy import KubeProxyHistograms
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
        self._programming = Programming(now_ms())
        self._synced: tuple[int, float] | None = None

    def forget(self) -> None:
        """The intent stream is new."""
        self._programming.forget()

    def service_read(self, seq: int, trigger_ms: int | None) -> None:
        """An intent of a Service of the stream's sequence `seq`."""
        self._observe(self._programming.changed(seq, trigger_ms, now_ms()))

    def applied(self, applied: Applied) -> None:
        """The switch's newest acknowledgement."""
        self._observe(self._programming.applied(applied.revision, now_ms()))
        if applied.sync_ms is None or (applied.revision, applied.sync_ms) == self._synced:
            return
        self._synced = (applied.revision, applied.sync_ms)
        self._histograms.sync_rules.observe(applied.sync_ms / 1000)

    def _observe(self, found: list[float]) -> None:
        for seconds in found:
            self._histograms.network_programming.observe(seconds)

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
