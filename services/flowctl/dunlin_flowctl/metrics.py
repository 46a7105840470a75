"""Metrics of flowctl."""

from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dunlin.service.kubeproxy import KubeProxyHistograms

PROGRAMMING_BUCKETS_S = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0,
)  # fmt: skip


class FlowctlMetrics:
    """
    Every series of flowctl beside the common ones.

    `messages_of`, `programming_of`: one series by its label, without prometheus-client's lock and
    strings; for each change on each switch.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"dunlin_{name}", text, labels, registry=registry)

        self.revision = Gauge(
            "dunlin_flowctl_read_revision",
            "Intent stream sequence up to which this replica has read.",
            registry=registry,
        )
        self.bundles = counter("flowctl_bundles_total", "Bundles by result.", "result")
        self.bundle_results = {
            True: self.bundles.labels("committed"),
            False: self.bundles.labels("refused"),
        }
        self.messages = counter("flowctl_messages_total", "Flow and group modifications.", "kind")
        self.messages_of = cache(self.messages.labels)
        self.written = counter("flowctl_written_bytes_total", "Bytes written to switches.")
        self.read = counter("flowctl_read_bytes_total", "Bytes read from switches.")
        self.intent_errors = counter(
            "flowctl_intent_errors_total", "Intents that a switch did not get as asked.", "reason"
        )
        self.openflow_errors = counter(
            "openflow_errors_total", "Sessions and messages that went wrong.", "reason"
        )
        self.denials = counter(
            "flowctl_denials_total",
            "Denied packets that switches sent to be logged: logged, repeated, limited, "
            "unreadable, unknown.",
            "result",
        )
        self.rejects = counter(
            "flowctl_rejects_total",
            "Packets for Services without endpoints: tcp_reset and icmp were answered so.",
            "result",
        )
        self.ct_flushes = counter(
            "flowctl_ct_flushes_total",
            "Tuples of UDP connections that changes of Services have made stale.",
        )
        self.drift = counter("drift_total", "What an audit found to differ.", "node", "kind")
        self.audits = counter(
            "flowctl_audits_total",
            "Comparisons with a dump, by cause; told: the switch itself said what it holds.",
            "cause",
        )
        self.programming = Histogram(
            "dunlin_programming_seconds",
            "From trigger (or publication) of a change to its acknowledgement by one switch.",
            ["kind"],
            buckets=PROGRAMMING_BUCKETS_S,
            registry=registry,
        )
        self.programming_of = cache(self.programming.labels)
        self.kubeproxy = KubeProxyHistograms(registry)
