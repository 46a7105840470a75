"""
The meters of one switch (Pods, denied packets): there before a flow that names them, gone after it.

ADR 0042.

Open vSwitch takes no meter in a bundle, refuses a flow whose meter is missing, and deletes the
flows of a meter that is deleted. So meters are written before a bundle, and deleted after it.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping

import structlog

from dunlin.openflow import codec, messages
from dunlin.openflow.flow import Meter
from dunlin.pipeline.bandwidth import direction_of
from dunlin.pipeline.layout import DENY_METER
from dunlin_flowctl.adapters.session import Refusal, Session
from dunlin_flowctl.core.layer import Replaced
from dunlin_flowctl.metrics import FlowctlMetrics

log = structlog.get_logger(__name__)


class NotMaster(Exception):
    """The switch has another master."""


class Meters:
    """`_there`: what the switch holds of Dunlin's meters, as it was written or read last."""

    def __init__(self, session: Session, node: str, metrics: FlowctlMetrics) -> None:
        self._session = session
        self._metrics = metrics
        self._log = log.bind(node=node)
        self._there: dict[int, Meter | None] = {}

    async def look(self) -> None:
        """Read all of them anew."""
        request = codec.encode_meter_dump_request
        self.read([part async for part in self._session.replies(request, messages.MeterDump)])

    def read(self, parts: Iterable[messages.MeterDump]) -> None:
        """They are these."""
        self._there = {}
        for part in parts:
            self._there |= {m.meter_id: m for m in part.meters if _is_ours(m.meter_id)}
            self._there |= {one: None for one in part.others if _is_ours(one)}

    @property
    def of_pods(self) -> bool:
        """There are some of Pods, of which the switch's own part says what they should be."""
        return bool(self._there.keys() - {DENY_METER})

    def differing(self, wanted: Mapping[int, Meter]) -> int:
        """How many of these are not there as they should be."""
        return sum(self._there.get(one) != meter for one, meter in wanted.items())

    def concerned(self, parts: Collection[Replaced]) -> bool:
        """Some meter must be written before these, or deleted after them."""
        wanted = {meter.meter_id: meter for meter in wanted_by(parts)}
        return bool(self.differing(wanted) or left_by(parts))

    async def put(self, wanted: Iterable[Meter]) -> None:
        """
        Have these there before a flow names them.

        One that the switch does not take is counted and named: it will refuse the flows of its
        intent, which is reported as any refusal.
        """
        for meter in wanted:
            if self._there.get(meter.meter_id) == meter:
                continue
            try:
                await self._session.set_meter(meter)
            except Refusal as refusal:
                self.refused(meter.meter_id, refusal)
            else:
                self._there[meter.meter_id] = meter

    async def drop(self, gone: Iterable[int]) -> None:
        """No flow names these any more."""
        for meter_id in gone:
            if meter_id not in self._there:
                continue
            try:
                await self._session.delete_meter(meter_id)
            except Refusal as refusal:
                self.refused(meter_id, refusal)
            else:
                del self._there[meter_id]

    async def sweep(self, wanted: Mapping[int, Meter]) -> None:
        """Delete what nobody wants and no flow names, be it one that stays for now."""
        strangers = self._there.keys() - wanted.keys()
        if not strangers:
            return
        unused: list[int] = []
        async for part in self._session.replies(
            codec.encode_meter_stats_request, messages.MeterStats
        ):
            unused += [one.meter_id for one in part.entries if not one.flows]
        await self.drop(sorted(strangers.intersection(unused)))

    def refused(self, meter_id: int, refusal: Refusal) -> None:
        """Count and name what the switch did not take. Raises NotMaster."""
        if refusal.error.name == "OFPBRC_IS_SLAVE":
            raise NotMaster(str(refusal)) from refusal
        self._metrics.openflow_errors.labels("meter").inc()
        self._log.warning("a meter was refused", meter=meter_id, error=str(refusal))


def _is_ours(meter_id: int) -> bool:
    return meter_id == DENY_METER or bool(direction_of(meter_id))


def wanted_by(parts: Iterable[Replaced]) -> Iterator[Meter]:
    """What a change needs."""
    for part in parts:
        if part.new is not None:
            yield from part.new.meters.values()


def left_by(parts: Iterable[Replaced]) -> set[int]:
    """What a change has made superfluous; an intent that takes one over is among its parts."""
    parts = tuple(parts)
    old = {one for part in parts if part.old is not None for one in part.old.meters}
    return old - {meter.meter_id for meter in wanted_by(parts)}
