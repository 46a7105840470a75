"""
kube-proxy's histograms, name for name and bucket for bucket, so that what reads them reads ours.

Source: pkg/proxy/metrics of Kubernetes; clusterloader2's NetworkProgrammingLatency is a quantile of
the first one.
"""

from prometheus_client import CollectorRegistry, Histogram

NETWORK_PROGRAMMING_BUCKETS_S = (
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
            buckets=NETWORK_PROGRAMMING_BUCKETS_S,
            registry=registry,
        )
        self.sync_rules = Histogram(
            "kubeproxy_sync_proxy_rules_duration_seconds",
            "SyncProxyRules latency in seconds",
            buckets=SYNC_BUCKETS_S,
            registry=registry,
        )
