"""
UDP connections of one switch that a change of a Service, or hostPort, has made stale: removed.

An acknowledged bundle is not yet in the datapath's cache of flows (revalidation follows within
some tenths of a second): a packet in between makes the stale entry again. So the same is removed
again a little later; it names exactly the affected tuples each time, so that what is new stays.
"""

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import structlog

from dunlin.events.intents import (
    AnyIntent,
    HostPortIntent,
    LocalServiceIntent,
    ServicePortIntent,
    SwitchIntent,
    intent_id,
)
from dunlin.model.ids import IntentId
from dunlin.openflow import codec
from dunlin.pipeline.base import SwitchContext
from dunlin.pipeline.udp import NOTHING, UdpService, udp_host_port, udp_service
from dunlin.subjects import ALL_SCOPE
from dunlin_flowctl.adapters.session import Session, SessionClosed
from dunlin_flowctl.core.udp import stale

if TYPE_CHECKING:
    from dunlin_flowctl.core.desired import Desired
    from dunlin_flowctl.metrics import FlowctlMetrics

log = structlog.get_logger(__name__)

AGAIN_AFTER_S = (0.0, 0.3, 1.7)
"""Pauses before each removal of the same."""
AT_ONCE_MAX = 64
"""OVS looks through all of conntrack for each: so many, and then a pause."""
PAUSE_S = 0.05
UDP_KEY = "/UDP"
"""How the key of a UDP ServicePort or hostPort ends."""


class UdpKey(NamedTuple):
    """A UDP ServicePort, or a hostPort."""

    kind: str
    key: str


def udp_key(changed: IntentId) -> UdpKey | None:
    """What an intent is about; None: nothing of UDP."""
    if not changed.endswith(UDP_KEY):
        return None
    _, kind, key = changed.split("/", 2)
    if kind in {"service", "localservice"}:
        return UdpKey("service", key)
    return UdpKey(kind, key) if kind == "hostport" else None


class StaleUdp:
    """Remembers what the switch had of each changed UDP ServicePort until the change is there."""

    def __init__(
        self, session: Session, node: str, desired: "Desired", metrics: "FlowctlMetrics"
    ) -> None:
        self._session = session
        self._node = node
        self._desired = desired
        self._metrics = metrics
        self._before: dict[UdpKey, UdpService] = {}
        self._taken: dict[UdpKey, tuple[UdpService, UdpService]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # --- what changes -----------------------------------------------------------------------------

    def changes(self, changed: IntentId) -> None:
        """An intent is about to change; the first call before it is on the switch counts."""
        key = udp_key(changed)
        if key is not None and key not in self._before:
            self._before[key] = self._now(key)

    def taken(self) -> None:
        """What stands now is being written."""
        for key, before in self._before.items():
            old = self._taken[key][0] if key in self._taken else before
            self._taken[key] = (old, self._now(key))
        self._before = {}

    def written(self, changed: Iterable[IntentId]) -> None:
        """These intents are on the switch as they were `taken`: remove what is stale."""
        flushes: list[codec.CtFlush] = []
        for key in {udp_key(item) for item in changed}:
            if key is not None and key in self._taken:
                flushes += stale(*self._taken.pop(key))
        if flushes:
            self._metrics.ct_flushes.inc(len(flushes))
            log.info("stale UDP connections", node=self._node, tuples=len(flushes))
            task = asyncio.create_task(self._flush(flushes), name=f"ct-flush {self._node}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def stop(self) -> None:
        """The switch is not ours any more."""
        for task in self._tasks:
            task.cancel()

    def _now(self, udp: UdpKey) -> UdpService:
        switch = self._intent(self._node, "switch", "pipeline")
        key = udp.key
        if udp.kind == "hostport":
            asked = self._intent(self._node, udp.kind, key)
            if not isinstance(asked, HostPortIntent) or not isinstance(switch, SwitchIntent):
                return NOTHING
            return udp_host_port(asked, SwitchContext(switch).own_addresses)
        service = self._intent(ALL_SCOPE, "service", key)
        if not isinstance(service, ServicePortIntent):
            return NOTHING
        local = self._intent(self._node, "localservice", key)
        return udp_service(
            service,
            local if isinstance(local, LocalServiceIntent) else None,
            switch.node_port_ips if isinstance(switch, SwitchIntent) else (),
        )

    def _intent(self, scope: str, kind: str, key: str) -> AnyIntent | None:
        version = self._desired.intents.get(intent_id(scope, kind, key))
        return version.intent if version is not None else None

    # --- removing ---------------------------------------------------------------------------------

    async def _flush(self, flushes: Sequence[codec.CtFlush]) -> None:
        try:
            for pause_s in AGAIN_AFTER_S:
                await asyncio.sleep(pause_s)
                await self._flush_once(flushes)
        except SessionClosed as error:
            log.debug("stale UDP connections not removed", node=self._node, reason=str(error))

    async def _flush_once(self, flushes: Sequence[codec.CtFlush]) -> None:
        for start in range(0, len(flushes), AT_ONCE_MAX):
            part = flushes[start : start + AT_ONCE_MAX]
            await self._session.write(*map(codec.encode_ct_flush, part))
            if start + AT_ONCE_MAX < len(flushes):
                await asyncio.sleep(PAUSE_S)
