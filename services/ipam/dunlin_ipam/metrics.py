"""The ledger as gauges."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dunlin_ipam.shell import Shell
from dunlin_ipam.usage import block_usage, pool_usage


class StateCollector(Collector):
    """What ipam knows, at the time of the scrape."""

    def __init__(self, shell: Shell) -> None:
        """`shell`: read only."""
        self._shell = shell

    def collect(self) -> Iterator[Metric]:
        """Addresses by block and by pool; shards; how far facts are read."""
        view = self._shell.view
        now_ms = view.now_ms()
        blocks = GaugeMetricFamily(
            "dunlin_ipam_block_addresses",
            "Addresses of a block.",
            labels=["block", "node", "state"],
        )
        for use in block_usage(view.state, now_ms):
            for state in ("allocated", "cooling", "free"):
                blocks.add_metric([str(use.cidr), use.node, state], getattr(use, state))
        yield blocks
        pools = GaugeMetricFamily(
            "dunlin_ipam_pool_addresses", "Addresses of a pool.", labels=["pool", "state"]
        )
        for pool in pool_usage(view.state, now_ms):
            for state in ("allocated", "cooling", "free"):
                pools.add_metric([str(pool.cidr), state], getattr(pool, state))
        yield pools
        yield _gauge("dunlin_ipam_shards", "Shards of this replica.", len(self._shell.working))
        yield _gauge("dunlin_ipam_fact_seq", "Facts are read up to here.", view.seq)
        yield _gauge(
            "dunlin_ipam_pending", "Intents to be written.", len(self._shell.writer.pending)
        )
        yield _gauge(
            "dunlin_ipam_findings", "Things that are not honoured.", len(self._shell.findings())
        )


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text)
    gauge.add_metric([], value)
    return gauge
