"""Puts the parts together."""

import sys

from dunlin.service.app import ServiceApp
from dunlin_flowctl import rest
from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.core.compiler import Compiler
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.gauges import SwitchCollector
from dunlin_flowctl.handles import Handles
from dunlin_flowctl.metrics import FlowctlMetrics
from dunlin_flowctl.ownership import Ownership
from dunlin_flowctl.shell import Shell
from dunlin_flowctl.wait import Waiter

GIL_S = 0.0005
"""
How long a worker thread that compares or encodes keeps the interpreter from the loop.

Python's own 5 ms are for each system call of the loop: with 100 switches, half a second.
"""


async def setup(app: ServiceApp[FlowctlSettings], compiler: Compiler | None = None) -> Shell:
    """Connect, listen, follow. `compiler`: another one than the pipeline (tests)."""
    settings = app.settings
    sys.setswitchinterval(GIL_S)
    bus = await app.connect_bus()
    metrics = FlowctlMetrics(app.metrics.registry)
    ownership = Ownership(bus, settings.replica, settings.lease_ttl_s)
    desired = Desired(compiler or PipelineCompiler())
    handles = Handles(settings, metrics, bus, desired, ownership)
    shell = Shell(handles, app.metrics)
    waiter = Waiter(handles)
    app.metrics.registry.register(SwitchCollector(shell, handles))
    app.api.include_router(rest.router(handles, waiter))
    app.ready("intents", lambda: None if handles.caught_up else "still reading the intents")
    app.on_stop("sessions", shell.listener.close)
    await shell.listener.start()
    app.task("intents", shell.read_intents())
    app.task("facts", shell.read_facts())
    app.task("state", shell.read_state())
    app.task("owners", ownership.follow())
    app.task("heartbeat", ownership.beat())
    app.task("members", ownership.watch())
    app.task("publisher", shell.publisher.run())
    app.task("audits", shell.auditor.run())
    app.task("wait", waiter.serve(), may_end=True)
    for address in settings.openflow_connect:
        app.task(f"connect {address}", shell.listener.connect(address))
    return shell
