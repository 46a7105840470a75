"""Puts the parts together."""

from dunlin.bus import leases
from dunlin.service.app import ServiceApp
from dunlin.service.shards import ShardLeases
from dunlin_planner import rest, rest_plan
from dunlin_planner.config import PlannerSettings
from dunlin_planner.metrics import StateCollector
from dunlin_planner.observer import Observer
from dunlin_planner.shell import Shell
from dunlin_planner.state import SHARD_COUNT


async def setup(app: ServiceApp[PlannerSettings]) -> Shell:
    """Connect and start the tasks."""
    settings = app.settings
    bus = await app.connect_bus()
    shards = ShardLeases(
        leases(bus), "planner", settings.replica, SHARD_COUNT, ttl_s=settings.lease_ttl_s
    )
    shell = Shell(bus, shards, settings, app.metrics, Observer(app.metrics.registry))
    shards.on_change = shell.nudge.set
    app.metrics.registry.register(StateCollector(shell))
    app.api.include_router(rest.router(shell, bus))
    app.api.include_router(rest_plan.router(shell, bus))
    app.ready("planner", shell.not_ready)
    app.task("intents", shell.writer.follow())
    app.task("claims", shell.claims.follow())
    app.task("facts", shell.read())
    app.task("attend", shell.attend())
    app.task("leases", shards.run())
    return shell
