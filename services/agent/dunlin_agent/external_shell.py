"""Keeps br-ext's flows: what from outside may be for br-int, from when br-int can take it."""

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from dunlin.events.facts import SwitchFact
from dunlin.model.addresses import IPAddress, MacAddress
from dunlin.pipeline.layout import Table
from dunlin_agent.adapters.openflow_local import LocalSwitchError, dump_flows, replace_flows
from dunlin_agent.adapters.ovs_spec import (
    EXTERNAL_BRIDGE,
    INTEGRATION_BRIDGE,
    PATCH_TO_INTEGRATION,
)
from dunlin_agent.adapters.ovsdb import Ovs
from dunlin_agent.adapters.ovsdb_session import OvsdbError
from dunlin_agent.config import Settings
from dunlin_agent.external import COOKIE, external_flows, takes_external
from dunlin_agent.facts import Facts
from dunlin_agent.steering.core import Frontend

LOOK_AGAIN_SECONDS: Final = 0.5

log = structlog.get_logger(__name__)

Frontends = frozenset[Frontend]
Key = tuple[str, MacAddress, tuple[IPAddress, ...], Frontends]


class ExternalFlows:
    """`own_frontends`: external IPs that are the node's own; None: not known yet."""

    def __init__(
        self,
        settings: Settings,
        facts: Facts,
        ovs: Ovs,
        own_frontends: Callable[[], Frontends | None] = frozenset,
    ) -> None:
        self._settings = settings
        self._facts = facts
        self._ovs = ovs
        self._own_frontends = own_frontends
        self._written: Key | None = None

    async def keep(self) -> None:
        """
        Have br-ext pass Pods' answers to br-int, from when br-int can tell them from the node's.

        Until then, and after each start of ovs-vswitchd, all of it goes to the node. Woken by the
        pulse of the facts, which beats too when the frontends become known or others.
        """
        while True:
            changed = self._facts.pulse.take()
            switch = self._facts.state.switch
            wanted = None if switch is None else self._key(switch)
            if wanted is None or wanted == self._written or not switch or not switch.uplink_port:
                await changed.wait()
                continue
            try:
                if await self._write(switch, wanted[3]):
                    self._written = wanted
                    continue
            except (LocalSwitchError, OvsdbError) as error:
                log.warning("br-ext has no flows for Pods yet", error=str(error))
            # The pipeline comes over another connection: nothing here announces it for sure.
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    def _key(self, switch: SwitchFact) -> Key | None:
        """What br-ext's flows depend on (another life of vswitchd has lost them); None: unknown."""
        frontends = self._own_frontends()
        if frontends is None:
            return None
        own = tuple(address.ip for address in switch.addresses)
        return switch.incarnation, switch.uplink_mac, own, frontends

    async def _write(self, switch: SwitchFact, frontends: Frontends) -> bool:
        rundir = self._settings.ovs_rundir
        pipeline = await dump_flows(rundir, INTEGRATION_BRIDGE, int(Table.CLASSIFIER))
        if not takes_external(pipeline):
            return False
        ports = {state.name: state.ofport for state in await self._ovs.interfaces()}
        flows = external_flows(
            tuple(address.ip for address in switch.addresses),
            ports[self._settings.uplink],
            ports[PATCH_TO_INTEGRATION],
            switch.uplink_mac,
            (self._settings.node_port_min, self._settings.node_port_max),
            frontends,
        )
        await replace_flows(rundir, EXTERNAL_BRIDGE, COOKIE, flows)
        log.info("br-ext passes Pods' answers on", flows=len(flows), frontends=len(frontends))
        return True
