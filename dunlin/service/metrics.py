"""Metrics that every service has, in a registry of its own."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from dunlin.bus import stats

LAG_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class BusCollector(Collector):
    """Shows `dunlin.bus.stats`."""

    def collect(self) -> Iterator[Metric]:
        """Three counters of the bus."""
        errors = CounterMetricFamily(
            "dunlin_bus_handler_errors", "Requests whose handler raised.", labels=["subject"]
        )
        for subject, count in stats.HANDLER_ERRORS.items():
            errors.add_metric([subject], count)
        yield errors
        lost = CounterMetricFamily(
            "dunlin_bus_disconnects", "Connections to NATS that were lost.", labels=["server"]
        )
        for server, count in stats.DISCONNECTS.items():
            lost.add_metric([server], count)
        yield lost
        resumes = CounterMetricFamily(
            "dunlin_bus_resumes", "Stream readers that had to resume.", labels=["stream", "reason"]
        )
        for (stream, reason), count in stats.RESUMES.items():
            resumes.add_metric([stream, reason], count)
        yield resumes


class Metrics:
    """
    The common metrics of one service.

    `bad_input`: kind = what it claimed to be (fact kind, "rest", "rpc"...), reason = a short fixed
    word, never the input. `unsupported`: input that is valid but that Dunlin does not do yet.
    """

    def __init__(self, service: str, version: str) -> None:
        self.service = service
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.registry.register(BusCollector())
        self._bad_input = Counter(
            "dunlin_bad_input_total",
            "Input that could not be used and was left out.",
            ["service", "kind", "reason"],
            registry=self.registry,
        )
        self._unsupported = Counter(
            "dunlin_unsupported_total",
            "Valid input that is not supported yet and was left out.",
            ["kind", "field"],
            registry=self.registry,
        )
        self.loop_lag = Histogram(
            "dunlin_event_loop_lag_seconds",
            "How much later than due the event loop ran a timer.",
            buckets=LAG_BUCKETS_S,
            registry=self.registry,
        )
        info = Gauge(
            "dunlin_build_info",
            "1; the labels say what runs.",
            ["service", "version"],
            registry=self.registry,
        )
        info.labels(service, version).set(1)

    def bad_input(self, kind: str, reason: str) -> None:
        """Count one piece of input that was left out."""
        self._bad_input.labels(self.service, kind, reason).inc()

    def unsupported(self, kind: str, field: str) -> None:
        """Count one object that asks for too much; `field` as Kubernetes spells it."""
        self._unsupported.labels(kind, field).inc()
