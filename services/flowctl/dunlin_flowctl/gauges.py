"""Gauges that are read off the handles when somebody scrapes."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dunlin_flowctl.handles import Handles
from dunlin_flowctl.shell import Shell


class SwitchCollector(Collector):
    """Switches by state; flows, groups, pending and errors of each that this replica owns."""

    def __init__(self, shell: Shell, handles: Handles) -> None:
        self._shell = shell
        self._handles = handles

    def collect(self) -> Iterator[Metric]:
        """The families, made anew: a switch that is gone leaves no series behind."""
        switches = GaugeMetricFamily(
            "dunlin_flowctl_switches",
            "Switches: owned; standby (another replica's); unknown (no switch intent); absent.",
            labels=["state"],
        )
        for state, number in self._shell.count_switches().items():
            switches.add_metric([state], number)
        yield switches
        yield GaugeMetricFamily(
            "dunlin_flowctl_audit_overdue_seconds",
            "How late the audit of the most overdue switch is: audits have a part of the time.",
            self._shell.auditor.overdue_s(),
        )
        yield from self._by_node()

    def _by_node(self) -> Iterator[Metric]:
        texts = {
            "flows": "Flows that a switch holds of its intents.",
            "groups": "Groups that a switch holds of its intents.",
            "pending": "Intents that a switch lacks.",
            "errors": "Intents that are not in force as asked.",
            "revision": "Intents up to this sequence are in force there, but those with errors.",
        }
        families = {
            name: GaugeMetricFamily(f"dunlin_flowctl_{name}", text, labels=["node"])
            for name, text in texts.items()
        }
        for node, runner in list(self._handles.runners.items()):
            applied = runner.applied()
            values = (
                applied.flows,
                applied.groups,
                applied.pending,
                len(applied.errors),
                applied.revision,
            )
            for family, value in zip(families.values(), values, strict=True):
                family.add_metric([node], value)
        yield from families.values()
