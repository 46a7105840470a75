"""Puts the parts together."""

from dunlin.bus import leases
from dunlin.service.app import ServiceApp
from dunlin.service.shards import ShardLeases
from dunlin_ipam import rest
from dunlin_ipam.config import IpamSettings
from dunlin_ipam.metrics import StateCollector
from dunlin_ipam.observer import Observer
from dunlin_ipam.server import Server
from dunlin_ipam.shell import SHARD_COUNT, Shell


async def setup(app: ServiceApp[IpamSettings]) -> Shell:
    """Connect, serve requests, start the tasks."""
    settings = app.settings
    bus = await app.connect_bus()
    shards = ShardLeases(
        leases(bus), "ipam", settings.replica, SHARD_COUNT, ttl_s=settings.lease_ttl_s
    )
    observer = Observer(app.metrics.registry)
    shell = Shell(bus, shards, settings, app.metrics, observer)
    shards.on_change = shell.nudge.set
    server = Server(
        bus,
        shell.view,
        shell.locks,
        app.metrics,
        observer,
        agents_grace_ms=round(settings.carve_grace_s * 1000),
    )
    app.metrics.registry.register(StateCollector(shell))
    app.api.include_router(rest.router(shell))
    app.ready("ipam", shell.not_ready)
    app.on_stop("requests", server.stop)
    app.task("intents", shell.writer.follow())
    app.task("claims", shell.claims.follow())
    app.task("facts", shell.read())
    app.task("work", shell.work())
    app.task("leases", shards.run())
    await server.start()
    return shell
