"""What ipam counts while it works."""

from prometheus_client import CollectorRegistry, Counter, Histogram

REQUEST_BUCKETS_S = (0.0005, 0.001, 0.002, 0.003, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5)


class Observer:
    """Histograms and counters of server and shell."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """In the registry of the service."""
        self.requests = Histogram(
            "dunlin_ipam_request_seconds",
            "From a request to its reply.",
            ["operation"],
            buckets=REQUEST_BUCKETS_S,
            registry=registry,
        )
        self.replies = Counter(
            "dunlin_ipam_replies_total",
            "Replies by result.",
            ["operation", "result"],
            registry=registry,
        )
        self.duties = Counter(
            "dunlin_ipam_duty_writes_total",
            "Lines of the ledger written unasked: claims, adoptions, releases of orphans.",
            ["kind"],
            registry=registry,
        )
        self.rounds = Histogram(
            "dunlin_ipam_round_seconds",
            "From facts read to endpoint intents published.",
            buckets=REQUEST_BUCKETS_S,
            registry=registry,
        )
