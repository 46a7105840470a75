"""The state as Prometheus series."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from dunlin_metrics import policies
from dunlin_metrics.samples import (
    BANDWIDTH,
    BANDWIDTH_FIELDS,
    POD_FIELDS,
    TRAFFIC,
    TRAFFIC_FIELDS,
)
from dunlin_metrics.spread import shares
from dunlin_metrics.state import State

POD_HELP = {
    "receive_bytes": "Bytes that the switch sent to the Pod's interface.",
    "receive_packets": "Packets that the switch sent to the Pod's interface.",
    "receive_drops": "Packets for the Pod that its port dropped.",
    "transmit_bytes": "Bytes that the switch received from the Pod's interface.",
    "transmit_packets": "Packets that the switch received from the Pod's interface.",
    "transmit_drops": "Packets of the Pod that its port dropped.",
}
SERVICE_LABELS = ("namespace", "service", "port", "endpoint")


class StateCollector(Collector):
    """Reads the state when scraped; series of what is gone vanish after the retention."""

    def __init__(self, state: State, policy_series_max: int) -> None:
        self.state = state
        self.policy_series_max = policy_series_max

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield from self._pods()
        yield from self._limits()
        yield from self._nodes()
        yield from self._endpoints()
        yield from self._shares()
        yield from self._switches()
        yield from policies.collect(self.state, self.policy_series_max)

    def _pods(self) -> Iterator[Metric]:
        for index, field in enumerate(POD_FIELDS):
            family = CounterMetricFamily(
                f"dunlin_pod_{field}", POD_HELP[field], labels=("namespace", "pod", "node")
            )
            for target, total in self.state.meter.of("pod"):
                family.add_metric(target[1:], total.values[index])
            yield family

    def _limits(self) -> Iterator[Metric]:
        for index, field in enumerate(BANDWIDTH_FIELDS):
            family = CounterMetricFamily(
                f"dunlin_pod_bandwidth_dropped_{field}",
                f"{field.title()} that a Pod's bandwidth limit dropped; direction as the Pod sees "
                "it. Only Pods with a limit.",
                labels=("namespace", "pod", "direction"),
            )
            for target, total in self.state.meter.of(BANDWIDTH):
                family.add_metric(target[1:], total.values[index])
            yield family

    def _nodes(self) -> Iterator[Metric]:
        for index, field in enumerate(("bytes", "packets")):
            family = CounterMetricFamily(
                f"dunlin_node_traffic_{field}",
                f"{field.title()} that the source's switch sent towards the destination node.",
                labels=("source", "destination"),
            )
            for target, total in self.state.meter.of("route"):
                family.add_metric(target[1:], total.values[index])
            yield family

    def _endpoints(self) -> Iterator[Metric]:
        connections = CounterMetricFamily(
            "dunlin_service_endpoint_connections",
            "Packets for which a switch chose this endpoint: one for each new connection, "
            "more where its first packets are repeated or stay without an answer.",
            labels=SERVICE_LABELS,
        )
        for target, total in self.state.meter.of("endpoint"):
            connections.add_metric(target[1:], total.values[0])
        yield connections
        for index, field in enumerate(TRAFFIC_FIELDS):
            family = CounterMetricFamily(
                f"dunlin_service_endpoint_{field}",
                f"{field.title()} between this endpoint and clients of the Service, both "
                "directions; the first packet of a connection is not among them.",
                labels=SERVICE_LABELS,
            )
            for target, total in self.state.meter.of(TRAFFIC):
                family.add_metric(target[1:], total.values[index])
            yield family

    def _shares(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "dunlin_service_endpoint_share",
            "Share of new connections, 0-1, within the endpoint's IP family: intended, and "
            "measured since the endpoints changed last.",
            labels=(*SERVICE_LABELS, "kind"),
        )
        for intent in self.state.services.values():
            for share in shares(self.state, intent):
                family.add_metric((*share.target[1:], "intended"), share.intended)
                if share.measured is not None:
                    family.add_metric((*share.target[1:], "measured"), share.measured)
        yield family

    def _switches(self) -> Iterator[Metric]:
        flows = GaugeMetricFamily("dunlin_switch_flows", "Flows of a switch.", labels=("node",))
        groups = GaugeMetricFamily("dunlin_switch_groups", "Groups of a switch.", labels=("node",))
        pending = GaugeMetricFamily(
            "dunlin_switch_pending", "Intents that a switch lacks.", labels=("node",)
        )
        errors = GaugeMetricFamily(
            "dunlin_switch_errors", "Intents that a switch refused.", labels=("node",)
        )
        connected = GaugeMetricFamily(
            "dunlin_switch_connected", "1: its owner has a session with it.", labels=("node",)
        )
        for node, applied in self.state.applied.items():
            flows.add_metric((node,), applied.flows)
            groups.add_metric((node,), applied.groups)
            pending.add_metric((node,), applied.pending)
            errors.add_metric((node,), len(applied.errors))
            connected.add_metric((node,), float(applied.connected))
        yield from (flows, groups, pending, errors, connected)
