"""What the shell counts while it works."""

from prometheus_client import CollectorRegistry, Counter, Histogram

STEP_BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


class Observer:
    """Histogram and counter of the shell."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """In the registry of the service."""
        self.step = Histogram(
            "dunlin_planner_step_seconds",
            "From a batch of facts to published intents.",
            buckets=STEP_BUCKETS_S,
            registry=registry,
        )
        self.facts = Counter(
            "dunlin_planner_facts_total", "Facts taken in.", ["kind"], registry=registry
        )
