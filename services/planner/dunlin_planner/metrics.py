"""What the planner knows, as gauges."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dunlin_planner.shell import Shell


class StateCollector(Collector):
    """What the planner knows, at the time of the scrape."""

    def __init__(self, shell: Shell) -> None:
        """`shell`: read only."""
        self._shell = shell

    def collect(self) -> Iterator[Metric]:
        """Gauges of intents, findings, shards, and how far facts are read."""
        shell = self._shell
        intents = GaugeMetricFamily(
            "dunlin_planner_intents", "Desired intents of this replica.", labels=["kind"]
        )
        counts: dict[str, int] = {}
        for subject in shell.writer.desired:
            kind = subject.split(".")[4]
            counts[kind] = counts.get(kind, 0) + 1
        for kind, count in sorted(counts.items()):
            intents.add_metric([kind], count)
        yield intents
        yield _gauge("dunlin_planner_pending", "Intents to be written.", len(shell.writer.pending))
        yield _gauge("dunlin_planner_shards", "Shards of this replica.", len(shell.state.shards))
        yield _gauge("dunlin_planner_fact_seq", "Facts are read up to here.", shell.seq)
        findings = GaugeMetricFamily(
            "dunlin_planner_findings", "Fields that are not honoured now.", labels=["severity"]
        )
        severities: dict[str, int] = {}
        for finding in shell.findings():
            severities[finding.severity] = severities.get(finding.severity, 0) + 1
        for severity, count in sorted(severities.items()):
            findings.add_metric([severity], count)
        yield findings


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text)
    gauge.add_metric([], value)
    return gauge
