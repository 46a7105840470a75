"""Keeps the timeouts of closed TCP connections, from when the node is set up."""

import asyncio
from typing import Final

import structlog

from dunlin.events.intents import SwitchIntent
from dunlin.model.ids import IntentId
from dunlin_agent.adapters.ovsdb import Ovs
from dunlin_agent.adapters.ovsdb_session import OvsdbError
from dunlin_agent.facts import Facts
from dunlin_agent.intents import NodeIntent
from dunlin_agent.metrics import AgentMetrics
from dunlin_agent.timeouts.core import ZonePolicy, next_write, owner, zones_wanted

RETRY_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)

_Wanted = tuple[str, frozenset[int]]


class ClosedConnections:
    """Of one node; a listener of its `intents`, which say what its Open vSwitch can do."""

    def __init__(self, ovs: Ovs, facts: Facts, seconds: int, metrics: AgentMetrics) -> None:
        """`seconds`: how long they are remembered; 0: ours are removed."""
        self._ovs = ovs
        self._facts = facts
        self._seconds = seconds
        self._metrics = metrics
        self._zones: frozenset[int] | None = None
        self._told: dict[int, ZonePolicy] = {}

    def put(self, intent: NodeIntent, _seq: int) -> None:
        """A newer version of an intent."""
        if isinstance(intent, SwitchIntent):
            self._zones = zones_wanted(null_nat=intent.null_nat)
            self._facts.pulse.beat()

    def remove(self, _intent_id: IntentId) -> None:
        """What an Open vSwitch can do is true without its intent."""

    def clear(self) -> None:
        """… and without the whole stream."""

    def settled(self) -> None:
        """Nothing waits for it."""

    async def run(self) -> None:
        """Write, then wait until somebody else has, ovs-vswitchd is another, or other zones are."""
        while True:
            await self._facts.pulse.until(lambda: self._wanted() is not None)
            wanted = self._wanted()
            assert wanted is not None
            life, zones = wanted
            try:
                found = await self._ovs.ensure_timeouts(zones, self._seconds, life)
                if next_write(found, zones, self._seconds, life) is None:
                    self._tell(found, zones)
                    await self._until_another(found, wanted)
                    continue
            except OvsdbError as error:
                self._metrics.setup_failures.labels(type(error).__name__).inc()
                log.warning("timeouts of conntrack not set", error=str(error))
            await asyncio.sleep(RETRY_SECONDS)

    def _wanted(self) -> _Wanted | None:
        """The life of ovs-vswitchd and the zones; None while one is not known."""
        switch = self._facts.state.switch
        return None if switch is None or self._zones is None else (switch.incarnation, self._zones)

    async def _until_another(self, found: dict[int, ZonePolicy], wanted: _Wanted) -> None:
        waits = [
            asyncio.create_task(self._ovs.timeouts_changed(found)),
            asyncio.create_task(self._facts.pulse.until(lambda: self._wanted() != wanted)),
        ]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            ends = await asyncio.gather(*waits, return_exceptions=True)
        for end in ends:
            if isinstance(end, Exception):
                raise end

    def _tell(self, found: dict[int, ZonePolicy], zones: frozenset[int]) -> None:
        """What is in force; an operator's policy once for each that it is."""
        policies = {zone: found[zone] for zone in sorted(zones & found.keys())}
        theirs = {zone: p for zone, p in policies.items() if owner(p) == "operator"}
        gauge = self._metrics.closed_connection_zones
        gauge.labels("operator").set(len(theirs))
        gauge.labels("dunlin").set(len(policies) - len(theirs))
        for zone, policy in theirs.items():
            if self._told.get(zone) != policy:
                log.warning(
                    "conntrack zone has timeouts of somebody else's: left alone",
                    zone=zone,
                    timeouts=policy.timeouts,
                )
        self._told = policies
