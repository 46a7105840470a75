"""The metrics service's metrics of itself, and the latency that it reads off acknowledgements."""

from prometheus_client import Counter, Gauge, Histogram

from dunlin.service.metrics import Metrics

LATENCY_BUCKETS_S = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class OwnMetrics:
    """`common` is the process's set."""

    def __init__(self, common: Metrics) -> None:
        self.common = common
        registry = common.registry
        self.programming = Histogram(
            "dunlin_programming_latency_seconds",
            "From the change that caused it (or its publication) to its being in force.",
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.last_programming = Gauge(
            "dunlin_switch_programming_latency_seconds",
            "The newest of these latencies of a switch.",
            ["node"],
            registry=registry,
        )
        self.polls = Counter(
            "dunlin_metrics_polls_total",
            "Readings of counters from flowctl, by result.",
            ["result"],
            registry=registry,
        )
