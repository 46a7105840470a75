"""
A switch in memory that holds, applies and refuses flows and groups as Open vSwitch does.

Pure: no time, no I/O. `fake_session.py` gives it a connection. One contract suite runs on both.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from dunlin.openflow.flow import Flow, Group, Match, Meter, groups_referred, meters_referred
from dunlin.openflow.messages import FlowRemoved, InstalledFlow, MeterCounters, Port
from dunlin.openflow.prerequisites import refusal
from dunlin.openflow.wire_flow import canonical, canonical_group

N_TABLES = 254
OFPG_ALL = 0xFFFFFFFC
OFPFF_SEND_FLOW_REM = 1
ERRORS = {
    "OFPBRC_BAD_TYPE": (1, 1),
    "OFPBRC_BAD_LEN": (1, 6),
    "OFPBRC_IS_SLAVE": (1, 10),
    "OFPBRC_BAD_MULTIPART": (1, 2),
    "OFPMMFC_INVALID_METER": (12, 2),
    "OFPBAC_BAD_OUT_GROUP": (2, 9),
    "OFPBAC_MATCH_INCONSISTENT": (2, 10),
    "OFPBAC_BAD_SET_ARGUMENT": (2, 15),
    "OFPBIC_BAD_TABLE_ID": (3, 2),
    "OFPBMC_BAD_PREREQ": (4, 9),
    "OFPFMFC_BAD_TABLE_ID": (5, 2),
    "OFPGMFC_GROUP_EXISTS": (6, 0),
    "OFPGMFC_INVALID_GROUP": (6, 1),
    "OFPGMFC_UNKNOWN_GROUP": (6, 8),
    "OFPGMFC_BAD_BUCKET": (6, 12),
    "OFPRRFC_STALE": (11, 0),
    "OFPMMFC_METER_EXISTS": (12, 1),
    "OFPMMFC_UNKNOWN_METER": (12, 3),
    "OFPBFC_BAD_ID": (17, 2),
    "OFPBFC_MSG_BAD_XID": (17, 9),
    "OFPBFC_MSG_UNSUP": (17, 10),
    "OFPBFC_MSG_FAILED": (17, 13),
}
"""Name -> (type, code) of every error that the fake switch gives."""

Key = tuple[int, int, Match]


class Refused(Exception):
    """The switch refuses a modification; `name` as OVS has it, one of `ERRORS`."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(f"{name}: {what}")
        self.name = name


@dataclass(frozen=True, slots=True)
class FlowMod:
    """One OFPT_FLOW_MOD as a value. "delete" goes by cookie, mask, table (255: all) and match."""

    command: Literal["add", "modify", "modify_strict", "delete", "delete_strict"]
    flow: Flow
    cookie_mask: int = 0
    flags: int = 0


@dataclass(frozen=True, slots=True)
class GroupMod:
    """One OFPT_GROUP_MOD as a value."""

    command: Literal["add", "modify", "delete", "insert_bucket", "remove_bucket"]
    group: Group


Mod = FlowMod | GroupMod


@dataclass
class FakeSwitch:
    """
    Flows and groups of one switch.

    `removed`: called with every flow that asked to be announced when it goes.
    """

    dpid: int = 1
    ports: dict[int, Port] = field(default_factory=dict)
    flows: dict[Key, InstalledFlow] = field(default_factory=dict)
    groups: dict[int, Group] = field(default_factory=dict)
    removed: Callable[[FlowRemoved], None] = lambda _: None
    applied: int = 0
    """Modifications applied so far."""
    generation_id: int | None = None
    """The newest that a master or slave has shown; shared by all sessions."""
    master: object = None
    """The session that is master."""
    meters: dict[int, Meter] = field(default_factory=dict)

    def apply(self, mod: Mod) -> None:
        """
        One modification.

        Raises:
            Refused: nothing has changed.
        """
        if isinstance(mod, FlowMod):
            self._apply_flow(mod)
        else:
            self._apply_group(mod)
        self.applied += 1

    def apply_bundle(self, mods: Iterable[Mod]) -> None:
        """
        All in order, or none.

        Raises:
            BundleRefused: the first one refused; nothing has changed.
            Crashed: one was refused after a group was deleted that flows still named.
        """
        before = (dict(self.flows), dict(self.groups), self.applied)
        announce, pending = self.removed, list[FlowRemoved]()
        self.removed = pending.append
        orphaned = ""
        try:
            for index, mod in enumerate(mods):
                try:
                    orphaned = orphaned or self._orphans(mod)
                    self.apply(mod)
                except Refused as refused:
                    self.flows, self.groups, self.applied = before
                    if orphaned:
                        raise Crashed(f"{orphaned}; then {refused}") from refused
                    raise BundleRefused(refused, index) from refused
        finally:
            self.removed = announce
        for one in pending:
            self.removed(one)

    def _orphans(self, mod: Mod) -> str:
        """What deletes a group together with flows that name it; "" if nothing does."""
        if not isinstance(mod, GroupMod) or mod.command != "delete":
            return ""
        wanted = mod.group.group_id
        for entry in self.flows.values():
            if any(wanted in (one, OFPG_ALL) for one in groups_referred(entry.flow)):
                return f"group {wanted:#x} deleted before flow {entry.flow.key}"
        return ""

    def select(
        self, cookie: int = 0, cookie_mask: int = 0, table: int | None = None, match: Match = ()
    ) -> list[InstalledFlow]:
        """The flows that a dump or a deletion by these means."""
        return [
            entry
            for entry in self.flows.values()
            if (entry.flow.cookie ^ cookie) & cookie_mask == 0
            and table in (None, entry.flow.table)
            and _within(entry.flow.match, match)
        ]

    def restart(self) -> None:
        """Everything is gone, as after a restart of ovs-vswitchd."""
        self.flows.clear()
        self.groups.clear()
        self.meters.clear()
        self.generation_id = self.master = None

    # --- meters ---

    def delete_meter(self, meter_id: int) -> None:
        """With it go the flows that name it."""
        if self.meters.pop(meter_id, None) is not None:
            for entry in list(self.flows.values()):
                if meter_id in meters_referred(entry.flow):
                    self._remove(entry, "meter_delete")

    def meter_counters(self) -> list[MeterCounters]:
        """As no packet has come."""
        named = [one for entry in self.flows.values() for one in meters_referred(entry.flow)]
        return [MeterCounters(one, named.count(one), 0, 0, 0, 0) for one in self.meters]

    # --- flows ---

    def _apply_flow(self, mod: FlowMod) -> None:
        flow = canonical(mod.flow)
        if mod.command in ("delete", "delete_strict"):
            self._delete_flows(mod, flow)
            return
        self._check(flow)
        old = self.flows.get(flow.key)
        if mod.command == "add":
            self.flows[flow.key] = InstalledFlow(flow, flags=mod.flags)
        elif mod.command == "modify_strict":
            if old and (old.flow.cookie ^ flow.cookie) & mod.cookie_mask == 0:
                self._modify(old, flow)
        else:
            table = None if flow.table == 0xFF else flow.table
            for entry in self.select(flow.cookie, mod.cookie_mask, table, flow.match):
                self._modify(entry, flow)

    def _modify(self, old: InstalledFlow, flow: Flow) -> None:
        """OpenFlow 1.1 and later: neither cookie nor time-outs change, and nothing is added."""
        changed = msgspec.structs.replace(old.flow, actions=flow.actions, goto=flow.goto)
        self.flows[old.flow.key] = msgspec.structs.replace(old, flow=changed)

    def _delete_flows(self, mod: FlowMod, flow: Flow) -> None:
        table = None if flow.table == 0xFF else flow.table
        if mod.command == "delete":
            doomed = self.select(flow.cookie, mod.cookie_mask, table, flow.match)
        else:
            old = self.flows.get(flow.key)
            doomed = [old] if old and (old.flow.cookie ^ flow.cookie) & mod.cookie_mask == 0 else []
        for entry in doomed:
            self._remove(entry, "delete")

    def _remove(self, entry: InstalledFlow, reason: str) -> None:
        del self.flows[entry.flow.key]
        if entry.flags & OFPFF_SEND_FLOW_REM:
            bare = msgspec.structs.replace(entry.flow, actions=(), goto=None)
            self.removed(FlowRemoved(0, reason, bare, entry.packets, entry.bytes, entry.duration_s))

    def _check(self, flow: Flow) -> None:
        """Raises Refused where OVS does."""
        if flow.table >= N_TABLES + 1:
            raise Refused("OFPFMFC_BAD_TABLE_ID", f"table {flow.table}")
        error = refusal(flow.match, flow.actions)
        if error:
            raise Refused(error, f"flow {flow}")
        if flow.goto is not None and not flow.table < flow.goto <= N_TABLES:
            raise Refused("OFPBIC_BAD_TABLE_ID", f"goto_table:{flow.goto} in table {flow.table}")
        for meter_id in meters_referred(flow):
            if meter_id not in self.meters:
                raise Refused("OFPMMFC_INVALID_METER", f"meter {meter_id:#x} of flow {flow.key}")
        for group_id in groups_referred(flow):
            if group_id not in self.groups:
                raise Refused("OFPBAC_BAD_OUT_GROUP", f"group {group_id:#x} of flow {flow.key}")

    # --- groups ---

    def _apply_group(self, mod: GroupMod) -> None:
        group = canonical_group(mod.group)
        if mod.command == "delete":
            self._delete_groups(group.group_id)
            return
        if len({bucket.bucket_id for bucket in group.buckets}) != len(group.buckets):
            raise Refused("OFPGMFC_BAD_BUCKET", f"group {group.group_id:#x}")
        if group.group_id >= 0xFFFFFF00 or (group.type == "indirect" and len(group.buckets) != 1):
            raise Refused("OFPGMFC_INVALID_GROUP", f"group {group.group_id:#x} of {group.type}")
        old = self.groups.get(group.group_id)
        if mod.command == "add" and old:
            raise Refused("OFPGMFC_GROUP_EXISTS", f"group {group.group_id:#x}")
        if mod.command != "add" and not old:
            raise Refused("OFPGMFC_UNKNOWN_GROUP", f"group {group.group_id:#x}")
        if mod.command in ("insert_bucket", "remove_bucket"):
            raise NotImplementedError(f"{mod.command}: Dunlin always modifies whole groups")
        self.groups[group.group_id] = group

    def _delete_groups(self, group_id: int) -> None:
        """One, or OFPG_ALL; with each group go the flows that name it."""
        doomed = list(self.groups) if group_id == OFPG_ALL else [group_id]
        for one in doomed:
            if self.groups.pop(one, None) is None:
                continue
            for entry in list(self.flows.values()):
                if one in groups_referred(entry.flow):
                    self._remove(entry, "group_delete")


class Crashed(Exception):
    """
    Here OVS 3.1 dies of an assertion ("group != NULL failed in ofproto_rule_insert__").

    In a bundle, delete or change a group's flows before the group: then a refusal rolls back well.
    """


class BundleRefused(Refused):
    """A bundle's message `index` (from 0) was refused, and so all of them."""

    def __init__(self, refused: Refused, index: int) -> None:
        super().__init__(refused.name, f"message {index} of the bundle: {refused}")
        self.index = index


def _within(inner: Match, outer: Match) -> bool:
    """Every packet that `inner` matches is matched by `outer`."""
    if not outer:
        return True
    known = {item.field: item for item in inner}
    for item in outer:
        narrow = known.get(item.field)
        wanted = -1 if item.mask is None else item.mask
        if narrow is None or (narrow.mask is not None and wanted & ~narrow.mask):
            return False
        if (narrow.value ^ item.value) & wanted:
            return False
    return True
