"""The watcher's own metrics."""

from collections.abc import Mapping
from functools import partial

from prometheus_client import Counter, Gauge, Histogram

from dunlin.service.metrics import Metrics
from dunlin_watcher.state import State
from dunlin_watcher.status import Status

LATENCY_BUCKETS_S = (
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    0.5,
    1.0,
    2.5,
    5.0,
    10.0,
    30.0,
)


class WatcherMetrics:
    """Everything is labelled by kind; `common` is the process's set."""

    def __init__(self, common: Metrics) -> None:
        self.common = common
        registry = common.registry
        self.objects = Gauge(
            "dunlin_watcher_objects", "Objects known.", ["kind"], registry=registry
        )
        self.events = Counter(
            "dunlin_watcher_events_total", "Watch events read.", ["kind", "type"], registry=registry
        )
        self.relists = Counter(
            "dunlin_watcher_lists_total", "Lists begun.", ["kind", "reason"], registry=registry
        )
        self.watch_restarts = Counter(
            "dunlin_watcher_watch_restarts_total",
            "Watches that ended and were begun again without a list.",
            ["kind", "reason"],
            registry=registry,
        )
        self.api_errors = Counter(
            "dunlin_watcher_api_errors_total",
            "Lists and watches that failed.",
            ["kind", "what", "reason"],
            registry=registry,
        )
        self.published = Counter(
            "dunlin_watcher_published_total",
            "Facts and tombstones stored in the stream.",
            ["kind", "what"],
            registry=registry,
        )
        self.refused = Counter(
            "dunlin_watcher_refused_total",
            "Messages that the stream did not take; each is tried again.",
            ["reason"],
            registry=registry,
        )
        self.publish_latency = Histogram(
            "dunlin_watcher_publish_latency_seconds",
            "From reading an event to its fact stored in the stream.",
            ["kind"],
            buckets=LATENCY_BUCKETS_S,
            registry=registry,
        )
        self.silence = Gauge(
            "dunlin_watcher_silence_seconds",
            "Since the API was last heard of this kind (a bookmark comes about once a minute).",
            ["kind"],
            registry=registry,
        )
        self.unpublished = Gauge(
            "dunlin_watcher_unpublished", "Changes that wait to be published.", registry=registry
        )
        self.leading = Gauge(
            "dunlin_watcher_leading", "1 while this process is the active one.", registry=registry
        )

    def observe(self, state: State, statuses: Mapping[str, Status]) -> None:
        """Show levels when scraped, instead of setting them at each change."""
        for name, kind in state.kinds.items():
            self.objects.labels(name).set_function(partial(getattr, kind, "count"))
            status = statuses[name]
            self.silence.labels(name).set_function(status.silence_s)
        self.unpublished.set_function(lambda: len(state.dirty) + len(state.inflight))
