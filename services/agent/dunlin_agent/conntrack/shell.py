"""
Looks through conntrack by ovs-vswitchd's control socket, and removes what two looks find stale.

A look holds up ovs-vswitchd's main thread, which also serves ordinary Pods: so looks are rare, but
for those after a time in which nobody may have watched the switch.
"""

import asyncio
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from dunlin.model.ids import IntentId
from dunlin.pipeline.layout import Zone
from dunlin_agent.adapters.openflow_local import LocalSwitchError, flush_connections
from dunlin_agent.adapters.ovs_spec import INTEGRATION_BRIDGE
from dunlin_agent.adapters.vswitchd import Vswitchd, VswitchdError
from dunlin_agent.conntrack.core import Connections, Entry, parse
from dunlin_agent.facts import Facts
from dunlin_agent.intents import Intents, NodeIntent
from dunlin_agent.metrics import AgentMetrics

DATAPATH: Final = "netdev@ovs-netdev"
PERIOD_SECONDS: Final = 300.0
PAUSE_SECONDS: Final = 1.0
CONNECTIONS_MAX: Final = 30_000
"""More (of all protocols) are not looked through: 3 to 6 microseconds each, measured."""
AT_ONCE_MAX: Final = 64
"""Open vSwitch goes through its whole table for each removal."""

log = structlog.get_logger(__name__)


class Reconcile:
    """Of one node; a listener of its `intents`."""

    def __init__(
        self,
        rundir: Path,
        facts: Facts,
        intents: Intents,
        vswitchd: Vswitchd,
        metrics: AgentMetrics,
    ) -> None:
        self._rundir = rundir
        self._facts = facts
        self._intents = intents
        self._vswitchd = vswitchd
        self._metrics = metrics
        self._core = Connections()
        self._known = False

    def put(self, intent: NodeIntent, _seq: int) -> None:
        """A newer version of an intent."""
        self._core.put(intent)

    def remove(self, intent_id: IntentId) -> None:
        """An intent is gone."""
        self._core.remove(intent_id)

    def clear(self) -> None:
        """Nothing is known, so nothing is stale."""
        self._core.clear()
        self._known = False

    def settled(self) -> None:
        """All is known."""
        self._known = True

    def _in_force(self) -> bool:
        """The switch does what the intents say: what contradicts them is a remainder."""
        return self._known and self._intents.in_force(self._facts.applied)

    async def run(self) -> None:
        """Look once the switch has a new master that is through, and every PERIOD_SECONDS."""
        while True:
            looked_at = self._session()
            if self._in_force():
                await self._reconcile()
                with suppress(TimeoutError):
                    async with asyncio.timeout(PERIOD_SECONDS):
                        await self._facts.pulse.until(lambda s=looked_at: self._session() != s)  # type: ignore[misc]
            else:
                await asyncio.sleep(PAUSE_SECONDS)
                await self._facts.pulse.until(self._in_force)

    def _session(self) -> tuple[str, int]:
        """Whose the switch is, and since when."""
        applied = self._facts.applied
        return ("", 0) if applied is None else (applied.owner, applied.master_since_ms)

    async def _reconcile(self) -> None:
        """Until a look finds nothing: the datapath's cache of flows may make an entry anew."""
        try:
            before = await self._look()
            while before and self._in_force():
                await asyncio.sleep(PAUSE_SECONDS)
                both = before & await self._look()
                if self._in_force():
                    await self._remove(both)
                await asyncio.sleep(PAUSE_SECONDS)
                before = await self._look()
        except (VswitchdError, LocalSwitchError) as error:
            log.warning("conntrack not looked through", error=str(error))

    async def _look(self) -> frozenset[Entry]:
        count = (await self._vswitchd.call("dpctl/ct-get-nconns", DATAPATH)).strip()
        if int(count) > CONNECTIONS_MAX:
            self._metrics.common.unsupported("connections", "reconciliation")
            log.warning("too many connections to look through", count=int(count))
            return frozenset()
        began = time.monotonic()
        dump = await self._vswitchd.call("dpctl/dump-conntrack", DATAPATH, f"zone={Zone.MAIN}")
        took = time.monotonic() - began
        self._metrics.conntrack_seconds.observe(took)
        entries = await asyncio.to_thread(lambda: tuple(parse(dump)))
        return self._core.stale(entries)

    async def _remove(self, entries: frozenset[Entry]) -> None:
        if entries:
            flushes = [entry.flush for entry in sorted(entries)[:AT_ONCE_MAX]]
            await flush_connections(self._rundir, INTEGRATION_BRIDGE, flushes)
            self._metrics.stale_connections.inc(len(flushes))
            log.info("stale UDP connections removed", count=len(flushes))
