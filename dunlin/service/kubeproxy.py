"""
kube-proxy's histograms, name for name, label for label and bucket for bucket, for who reads them.

Source: pkg/proxy/metrics of Kubernetes 1.36; clusterloader2's NetworkProgrammingLatency is a
quantile of the first one, summed by `le`. The bucket 0 is kube-proxy's too: its buckets are merged
into a list that begins so.
"""

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Histogram

from dunlin.events.intents import ServicePortIntent

FAMILIES = ("IPv4", "IPv6")
"""Values of the label `ip_family`."""
NETWORK_PROGRAMMING_BUCKETS_S = (
    0.0,
    0.25,
    0.5,
    *(float(i) for i in range(1, 60)),
    *(float(i) for i in range(60, 120, 5)),
    *(float(i) for i in range(120, 301, 30)),
)
SYNC_BUCKETS_S = tuple(0.001 * 2**i for i in range(15))


class KubeProxyHistograms:
    """
    `network_programming`: from `endpoints.kubernetes.io/last-change-trigger-time` to the rules.

    `sync_rules`: from the first byte of a change to the switch's acknowledgement of the last.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.network_programming = Histogram(
            "kubeproxy_network_programming_duration_seconds",
            "In Cluster Network Programming Latency in seconds",
            ["ip_family"],
            buckets=NETWORK_PROGRAMMING_BUCKETS_S,
            registry=registry,
        )
        self.sync_rules = Histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds",
            ["ip_family"],
            buckets=SYNC_BUCKETS_S,
            registry=registry,
        )
        self._used: set[str] = set()
        for histogram in (self.network_programming, self.sync_rules):
            for family in FAMILIES:
                histogram.labels(family)

    def programmed(self, families: Iterable[str], seconds: float) -> None:
        """A change of a Service of these families is in force."""
        for family in families:
            self._used.add(family)
            self.network_programming.labels(family).observe(seconds)

    def synced(self, seconds: float) -> None:
        """One round of writing: of every family that Services have had, as one kube-proxy each."""
        for family in sorted(self._used or FAMILIES[:1]):
            self.sync_rules.labels(family).observe(seconds)


def families_of(intent: ServicePortIntent) -> tuple[str, ...]:
    """The families that a ServicePort has an address of."""
    return tuple(sorted({f"IPv{address.ip.version}" for address in intent.addresses}))
