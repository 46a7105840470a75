"""Wiring of the metrics service."""

from dunlin.service import history
from dunlin.service.app import ServiceApp, run_service
from dunlin_metrics import rest
from dunlin_metrics.adapters.flowctl import FlowctlClient
from dunlin_metrics.config import Settings
from dunlin_metrics.exposition import StateCollector
from dunlin_metrics.metrics import OwnMetrics
from dunlin_metrics.shell import STREAMS, Shell


async def setup(app: ServiceApp[Settings]) -> None:
    """Connect, follow, poll."""
    settings = app.settings
    reader = FlowctlClient(timeout_s=settings.poll_timeout_s, token_file=settings.flowctl_token)
    app.on_stop("flowctl", reader.close)
    bus = await app.connect_bus()
    shell = Shell(bus, reader, settings, OwnMetrics(app.metrics))
    app.metrics.registry.register(StateCollector(shell.state, settings.policy_series_max))
    app.api.include_router(rest.router(shell.state))
    app.api.include_router(history.router(bus))
    app.ready("streams", shell.not_ready)
    for stream in STREAMS:
        app.task(f"follow-{stream}", shell.follow(stream))
    app.task("poll", shell.poll())


def main() -> None:
    """Run until SIGTERM."""
    run_service("metrics", Settings, setup, title="Dunlin metrics")


if __name__ == "__main__":
    main()
