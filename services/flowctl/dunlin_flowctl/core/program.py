"""One intent, compiled: its flows and groups by the key that names them on a switch."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, count, repeat
from typing import NamedTuple

from dunlin.model.ids import IntentId
from dunlin.openflow.flow import Flow, Group, Match, Meter, Program
from dunlin_flowctl.core.digest import Totals, messages_of, totals_of

FlowKey = tuple[int, int, Match]
"""(table, priority, match)."""


class MeterKey(NamedTuple):
    """What names a meter."""

    meter_id: int


Key = FlowKey | int | MeterKey
"""What names something on a switch: a flow's key, a group's id, or a meter."""

Content = Flow | Group


@dataclass(frozen=True, slots=True)
class Conflict:
    """`key` is claimed by this intent too, but belongs to `owner`."""

    key: Key
    owner: IntentId

    def __str__(self) -> str:
        """For people and for `AppliedError.reason`."""
        return f"{describe_key(self.key)} belongs to {self.owner}"


def describe_key(key: Key) -> str:
    """A key in a few words."""
    if isinstance(key, int):
        return f"group {key}"
    if isinstance(key, MeterKey):
        return f"meter {key.meter_id}"
    table, priority, match = key
    return f"flow table={table} priority={priority} on {','.join(m.field for m in match) or 'all'}"


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Compiled:
    """
    What one version of one intent puts on a switch; shared by every switch that holds it.

    Equality is identity; `serial` is unique in this process. `conflicts`: what the intent asked
    for and does not get. `meters` are no part of bundles: `meters.py` writes them.
    `totals`: of flows and groups. `messages`: those that add them, groups first, where they are
    kept: what every switch needs is encoded once.
    """

    intent_id: IntentId
    serial: int
    flows: Mapping[FlowKey, Flow]
    groups: Mapping[int, Group]
    meters: Mapping[int, Meter]
    conflicts: tuple[Conflict, ...]
    totals: Totals
    messages: tuple[bytes, ...]

    def keys(self) -> Iterator[FlowKey | int]:
        """Every key of flows and groups, groups first."""
        return chain(self.groups, self.flows)

    def items(self) -> Iterator[tuple[FlowKey | int, Content, bytes]]:
        """Every key, what stands there and its message (maybe empty), groups first."""
        contents: Iterator[Content] = chain(self.groups.values(), self.flows.values())
        return zip(self.keys(), contents, self.messages or repeat(b""), strict=False)


def program_keys(program: Program | None) -> set[Key]:
    """Every key that a program claims."""
    if program is None:
        return set()
    keys: set[Key] = {group.group_id for group in program.groups}
    keys.update(MeterKey(meter.meter_id) for meter in program.meters)
    keys.update(flow.key for flow in program.flows)
    return keys


class Workshop:
    """Makes `Compiled` values."""

    def __init__(self) -> None:
        self._serials = count(1)

    def make(
        self,
        intent_id: IntentId,
        program: Program,
        lost: Collection[Conflict] = (),
        *,
        keep: bool = False,
    ) -> Compiled:
        """
        `program` without the keys in `lost`. A key that a program holds twice: the first one.

        `keep`: the messages.
        """
        groups: dict[int, Group] = {}
        for group in program.groups:
            groups.setdefault(group.group_id, group)
        flows: dict[FlowKey, Flow] = {}
        for flow in program.flows:
            flows.setdefault(flow.key, flow)
        twice: list[Key] = []
        if len(groups) < len(program.groups) or len(flows) < len(program.flows):
            twice += [g.group_id for g in program.groups if groups[g.group_id] != g]
            twice += [f.key for f in program.flows if flows[f.key] != f]
        meters = {meter.meter_id: meter for meter in program.meters}
        for conflict in lost:
            if isinstance(conflict.key, int):
                groups.pop(conflict.key, None)
            elif isinstance(conflict.key, MeterKey):
                meters.pop(conflict.key.meter_id, None)
            else:
                flows.pop(conflict.key, None)
        conflicts = (*lost, *(Conflict(key, intent_id) for key in twice))
        messages = messages_of(chain(groups.values(), flows.values()))
        totals = totals_of(groups.values(), flows.values(), messages)
        serial, kept = next(self._serials), tuple(messages) if keep else ()
        return Compiled(intent_id, serial, flows, groups, meters, conflicts, totals, kept)
