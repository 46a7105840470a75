"""Wiring of the watcher."""

from dunlin import bus as bus_package
from dunlin.bus.base import Bus
from dunlin.bus.janitor import Janitor
from dunlin.service.app import ServiceApp, run_service
from dunlin_watcher import rest
from dunlin_watcher.adapters.kubernetes import KubernetesApi
from dunlin_watcher.config import Settings
from dunlin_watcher.metrics import WatcherMetrics
from dunlin_watcher.shell import Watcher


def janitor_of(bus: Bus, settings: Settings) -> Janitor:
    """Forgets old tombstones; one replica at a time does, by a lease of its own."""
    return Janitor(
        bus,
        bus_package.leases(bus),
        settings.replica,
        tombstone_age_s=settings.tombstone_age_s,
        period_s=settings.janitor_period_s,
    )


async def setup(app: ServiceApp[Settings]) -> None:
    """Connect, and start following and leading."""
    settings = app.settings
    api = KubernetesApi(settings.kubeconfig, page_size=settings.page_size)
    app.on_stop("kubernetes", api.close)
    bus = await app.connect_bus()
    metrics = WatcherMetrics(app.metrics)
    watcher = Watcher(bus, bus_package.leases(bus), api, settings, metrics)
    metrics.observe(watcher.state, watcher.statuses)
    app.api.include_router(rest.router(watcher))
    app.ready("facts", watcher.not_ready)
    app.task("follow", watcher.follow())
    app.task("lead", watcher.lead())
    if settings.janitor_period_s > 0:
        app.task("janitor", janitor_of(bus, settings).run())


def main() -> None:
    """Run until SIGTERM."""
    run_service("watcher", Settings, setup, title="Dunlin watcher")


if __name__ == "__main__":
    main()
