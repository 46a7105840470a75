"""
One packet's walk through tables, groups and conntrack; `trace.py` is its front.

Each rule of Open vSwitch stands at one place here; what is not here raises `CannotTrace`.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from dunlin.openflow.conntrack import Connection, Conntrack, Tuple, state_of, tuple_of
from dunlin.openflow.fields import CT_STATE_BITS, FIELDS
from dunlin.openflow.flow import (
    OFPP_CONTROLLER,
    OFPP_IN_PORT,
    OFPP_LOCAL,
    Action,
    Bucket,
    Conjunction,
    Controller,
    Ct,
    CtClear,
    DecTtl,
    FieldMatch,
    Flow,
    Group,
    Learn,
    MeterAction,
    Move,
    Output,
    OutputReg,
    Resubmit,
    SetField,
    ToGroup,
)
from dunlin.openflow.packet import (
    CannotTrace,
    Packet,
    address_fields,
    matches,
    port_fields,
    read,
    write,
)
from dunlin.openflow.render import actions_text

DEPTH_MAX = 64
"""Of resubmit, groups and recirculation; OVS's own limit."""
_CT_FIELDS = (
    "ct_state", "ct_zone", "ct_mark", "ct_label", "ct_nw_proto", "ct_nw_src", "ct_nw_dst",
    "ct_ipv6_src", "ct_ipv6_dst", "ct_tp_src", "ct_tp_dst",
)  # fmt: skip

Choose = Callable[[Group, tuple[Bucket, ...], Packet], Bucket]
"""Picks one of a select group's buckets; only those with a weight are offered."""


def first_bucket(_group: Group, buckets: tuple[Bucket, ...], _packet: Packet) -> Bucket:
    """The first one."""
    return buckets[0]


@dataclass(frozen=True, slots=True)
class Left:
    """A packet that leaves; `port` OFPP_CONTROLLER: to the controller, with `userdata`."""

    port: int
    packet: dict[str, int]
    userdata: bytes = b""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happened; `flow` None: no flow, or an action; `depth` counts nesting."""

    depth: int
    table: int
    flow: Flow | None
    why: str


class Run:
    """One packet on its way; its copies share all but the packet itself."""

    def __init__(
        self,
        tables: dict[int, list[Flow]],
        groups: dict[int, Group],
        conntrack: Conntrack,
        choose: Choose,
        learned: Sequence[Flow],
    ) -> None:
        self._tables = tables
        self._groups = groups
        self._choose = choose
        self._pending_nat = ""
        self._hashed = ""
        """The register that holds bits of dp_hash."""
        self.conntrack = conntrack
        self.learned = list(learned)
        self.steps: list[Step] = []
        self.left: list[Left] = []
        self.buckets: list[tuple[int, int]] = []

    def _note(self, depth: int, table: int, why: str, flow: Flow | None = None) -> None:
        self.steps.append(Step(depth, table, flow, why))

    # --- lookup ---

    def table(self, table: int, packet: dict[str, int], depth: int) -> None:
        """Look up, apply, go on with goto_table."""
        if depth > DEPTH_MAX:
            raise CannotTrace(f"table {table}: deeper than {DEPTH_MAX}")
        following: int | None = table
        while following is not None:
            table = following
            flow = self._lookup(table, packet)
            if flow is None:
                self._note(depth, table, "no flow matches: drop")
                return
            self._note(depth, table, "matched", flow)
            if not self._apply(flow.actions, flow, packet, depth):
                return
            following = flow.goto

    def _lookup(self, table: int, packet: dict[str, int]) -> Flow | None:
        """The flow of the highest priority that matches; conjunctions as in ovs-fields(7)."""
        flows = list(self._tables.get(table, ()))
        extra = [flow for flow in self.learned if flow.table == table]
        if extra:
            keys = {flow.key for flow in extra}
            flows = [flow for flow in flows if flow.key not in keys] + extra
            flows.sort(key=lambda flow: -flow.priority)
        below = 1 << 17
        while True:
            tier = self._next_tier(flows, packet, below)
            if not tier:
                return None
            below = tier[0].priority
            flow = self._decide(flows, self._of_slots(tier, packet), packet)
            if flow is not None:
                return flow

    def _next_tier(self, flows: list[Flow], packet: Packet, below: int) -> list[Flow]:
        """The matching flows of the highest priority below `below`."""
        tier: list[Flow] = []
        for flow in flows:
            if tier and flow.priority < tier[0].priority:
                break
            if flow.priority < below and all(
                matches(packet, item) for item in flow.match if item.field != self._hashed
            ):
                tier.append(flow)
        return tier

    def _of_slots(self, tier: list[Flow], packet: Packet) -> list[Flow]:
        """Of flows that share out dp_hash one: nobody but the switch knows a packet's hash."""
        apart = {f.actions: f for f in tier if any(m.field == self._hashed for m in f.match)}
        if not apart:
            return tier
        buckets = tuple(Bucket(i, actions) for i, actions in enumerate(apart))
        return [apart[self._choose(Group(0, "select", buckets), buckets, packet).actions]]

    def _decide(self, flows: list[Flow], tier: list[Flow], packet: dict[str, int]) -> Flow | None:
        hard = [flow for flow in tier if not any(isinstance(a, Conjunction) for a in flow.actions)]
        if len({(flow.goto, flow.actions) for flow in hard}) > 1:
            raise CannotTrace(f"two flows of one priority match: {hard[0]} and {hard[1]}")
        complete = _complete([flow for flow in tier if flow not in hard])
        if hard and complete:
            raise CannotTrace(f"a flow and conjunction {complete} of one priority match: {hard[0]}")
        if hard:
            return hard[0]
        found = [self._of_conjunction(conj_id, flows, packet) for conj_id in sorted(complete)]
        if len({_effect(flow) for flow in found}) > 1:
            raise CannotTrace(f"conjunctions {complete} of one priority are complete and differ")
        return found[0] if found else None

    def _of_conjunction(
        self, conj_id: int, flows: list[Flow], packet: dict[str, int]
    ) -> Flow | None:
        wanted = FieldMatch("conj_id", conj_id)
        named = [flow for flow in flows if wanted in flow.match]
        inner = self._next_tier(named, {**packet, "conj_id": conj_id}, 1 << 17)
        if len(inner) > 1:
            raise CannotTrace(f"two flows of conj_id {conj_id} match")
        return inner[0] if inner else None

    # --- actions ---

    def _apply(
        self, actions: tuple[Action, ...], flow: Flow, packet: dict[str, int], depth: int
    ) -> bool:
        """One after another; False: the packet goes no further than these."""
        table = flow.table
        for index, action in enumerate(actions):
            match action:
                case Output(port=port):
                    self._output(port, table, packet, depth)
                case MeterAction(meter_id=meter_id):
                    # A tracer knows no time: there is room in every meter.
                    self._note(depth, table, f"meter:{meter_id}")
                case OutputReg(field=name):
                    self._output(_port_in(name, packet), table, packet, depth)
                case Controller(userdata=userdata):
                    self._note(depth, table, "to the controller")
                    self.left.append(Left(OFPP_CONTROLLER, dict(packet), userdata))
                case SetField(field=name, value=value, mask=mask):
                    _settable(name)
                    write(packet, name, value, mask)
                case Move(src=src, dst=dst, bits=bits):
                    _settable(dst)
                    if src == "dp_hash":
                        self._hashed = dst
                    write(packet, dst, read(packet, src), (1 << bits) - 1 if bits else None)
                case DecTtl():
                    if not self._dec_ttl(table, packet, depth):
                        return False
                case ToGroup(group_id=group_id):
                    self._group(group_id, flow, packet, depth)
                case Resubmit(table=other):
                    self._note(depth, table, f"resubmit to table {other}")
                    self.table(other, packet, depth + 1)
                case Ct():
                    rest = actions[index + 1 :]
                    if action.table is not None and (rest or flow.goto is not None):
                        raise CannotTrace(f"more after ct(table={action.table}) in flow {flow}")
                    self._ct(action, table, packet, depth)
                case CtClear():
                    for name in _CT_FIELDS:
                        packet.pop(name, None)
                case Learn():
                    self._learn(action, packet)
                    self._note(depth, table, actions_text((action,)))
                case _:
                    raise CannotTrace(f"action {action} of flow {flow}")
        return True

    def _output(self, port: int, table: int, packet: dict[str, int], depth: int) -> None:
        in_port = packet.get("in_port", 0)
        if port == OFPP_IN_PORT:
            port = in_port
        elif port == in_port:
            self._note(depth, table, f"output:{port} is where it came from: not sent")
            return
        if 0xFFFFFF00 <= port != OFPP_LOCAL:
            raise CannotTrace(f"output to reserved port {port:#x}")
        self._note(depth, table, f"output:{port}")
        self.left.append(Left(port, dict(packet)))

    def _dec_ttl(self, table: int, packet: dict[str, int], depth: int) -> bool:
        address_fields(packet)
        if "nw_ttl" not in packet:
            raise CannotTrace("dec_ttl: the packet has no nw_ttl")
        if packet["nw_ttl"] <= 1:
            self._note(depth, table, "TTL runs out: drop")
            return False
        packet["nw_ttl"] -= 1
        return True

    def _group(self, group_id: int, flow: Flow, packet: dict[str, int], depth: int) -> None:
        group = self._groups.get(group_id)
        if group is None:
            raise CannotTrace(f"flow {flow} names group {group_id:#x}, which is missing")
        buckets = group.buckets
        if group.type == "select":
            weighted = tuple(bucket for bucket in buckets if bucket.weight)
            buckets = (self._choose(group, weighted, packet),) if weighted else ()
        elif group.type not in ("all", "indirect"):
            raise CannotTrace(f"group {group_id:#x} of type {group.type}")
        if not buckets:
            self._note(depth, flow.table, f"group {group_id} has no bucket: drop")
        for bucket in buckets:
            _check_bucket(group, bucket)
            self.buckets.append((group_id, bucket.bucket_id))
            text = actions_text(bucket.actions)
            self._note(depth, flow.table, f"group {group_id} bucket {bucket.bucket_id}: {text}")
            # A bucket works on a copy: what it changes is gone after it.
            inside = msgspec.structs.replace(flow, actions=bucket.actions, goto=None)
            self._apply(bucket.actions, inside, dict(packet), depth + 1)

    def _learn(self, learn: Learn, packet: Packet) -> None:
        fields: dict[str, int] = {}
        actions: list[Action] = []
        for spec in learn.specs:
            value = read(packet, spec.src_field) if spec.src_field else spec.value
            mask = (1 << spec.bits) - 1
            whole = spec.bits == FIELDS[spec.dst_field].bits
            if spec.kind == "load":
                action = SetField(spec.dst_field, value & mask, None if whole else mask)
                actions.append(action)
            elif whole:
                fields[spec.dst_field] = value
            else:
                raise CannotTrace(f"learn() with a part of field {spec.dst_field}")
        match = tuple(sorted(FieldMatch(name, value) for name, value in fields.items()))
        flow = Flow(
            learn.table, learn.priority, match, tuple(actions), None, learn.cookie,
            learn.idle_timeout_s, learn.hard_timeout_s,
        )  # fmt: skip
        self.learned = [old for old in self.learned if old.key != flow.key] + [flow]

    # --- ct ---

    def _ct(self, ct: Ct, table: int, packet: dict[str, int], depth: int) -> None:
        key = tuple_of(packet)
        original = None if self.conntrack.find(ct.zone, key) else self._by_original(ct, packet)
        found = original or self.conntrack.find(ct.zone, key)
        if found and found[1] and ct.force and ct.commit:
            self.conntrack.remove(found[0])
            found = None
        connection, reply = found or (None, False)
        state = state_of(connection, reply=reply)
        if original:
            # In one zone ct_state is added to, not set anew: it stays known as translated.
            state |= read(packet, "ct_state") & (CT_STATE_BITS["snat"] | CT_STATE_BITS["dnat"])
        if connection and reply and not connection.replied:
            connection = replace(connection, replied=True)
            self.conntrack.put(connection)
        if ct.commit:
            connection = self._commit(ct, connection, Connection(ct.zone, key, key.reverse), packet)
        after = dict(packet)
        if ct.nat is not None and connection is not None and connection.nat:
            _translate(after, connection, reply=reply)
            state |= CT_STATE_BITS["snat" if connection.nat == "src" else "dnat"]
        if ct.table is None:
            # Only the headers are visible without a recirculation.
            for name in (*address_fields(packet), *(port_fields(packet) or ())):
                packet[name] = after.get(name, 0)
            self._note(depth, table, f"{actions_text((ct,))}: {_state_text(state)}")
            return
        _describe(after, ct.zone, state, connection)
        self._note(depth, table, f"{actions_text((ct,))}: {_state_text(state)}")
        self.table(ct.table, after, depth + 1)

    def _by_original(self, ct: Ct, packet: Packet) -> tuple[Connection, bool] | None:
        """
        The connection of a packet that this zone has translated already, by its original tuple.

        As check_orig_tuple() in OVS's lib/conntrack.c: without a NAT action only.
        """
        translated = CT_STATE_BITS["snat"] | CT_STATE_BITS["dnat"]
        if ct.nat or packet.get("ct_zone") != ct.zone or not read(packet, "ct_state") & translated:
            return None
        src, dst = address_fields(packet)
        original = Tuple(
            read(packet, "eth_type"),
            read(packet, "ct_nw_proto"),
            read(packet, f"ct_{src}"),
            read(packet, f"ct_{dst}"),
            read(packet, "ct_tp_src"),
            read(packet, "ct_tp_dst"),
        )
        return self.conntrack.find(ct.zone, original)

    def _commit(
        self, ct: Ct, connection: Connection | None, fresh: Connection, packet: Packet
    ) -> Connection:
        """The connection as it stands after ct(commit)."""
        if connection is None:
            connection = fresh
            if ct.nat is not None and ct.nat.direction:
                connection = self.conntrack.translated(connection, ct.nat)
        values = dict(packet) | {"ct_mark": connection.mark, "ct_label": connection.label}
        for action in ct.exec:
            name = action.field if isinstance(action, SetField) else action.dst
            if name not in ("ct_mark", "ct_label"):
                raise CannotTrace(f"{action} in ct()")
            if isinstance(action, SetField):
                write(values, name, action.value, action.mask)
            else:
                mask = (1 << action.bits) - 1 if action.bits else None
                write(values, name, read(packet, action.src), mask)
        connection = replace(connection, mark=values["ct_mark"], label=values["ct_label"])
        self.conntrack.put(connection)
        return connection


def _effect(flow: Flow | None) -> object:
    """What a flow does to a packet; which number it notes in a register is not looked at."""
    if flow is None:
        return None
    noted = [a.field if isinstance(a, SetField) else a for a in flow.actions]
    return (flow.goto, tuple(noted))


def _complete(flows: list[Flow]) -> tuple[int, ...]:
    """conj_ids of which every clause is among the flows."""
    clauses: dict[int, set[int]] = defaultdict(set)
    sizes: dict[int, int] = {}
    for flow in flows:
        for action in flow.actions:
            if not isinstance(action, Conjunction):
                raise CannotTrace(f"conjunction() beside {action}")
            if sizes.setdefault(action.conj_id, action.clauses) != action.clauses:
                raise CannotTrace(f"conj_id {action.conj_id} of two numbers of clauses")
            clauses[action.conj_id].add(action.clause)
    return tuple(conj_id for conj_id, size in sizes.items() if len(clauses[conj_id]) == size)


def _check_bucket(group: Group, bucket: Bucket) -> None:
    """A bucket is an action set: OVS takes one of group, output, resubmit and ct, and that last."""
    final = (Output, OutputReg, ToGroup, Resubmit, Ct, Controller)
    ends = [isinstance(action, final) for action in bucket.actions]
    if sum(ends) > 1 or (any(ends) and not ends[-1]):
        raise CannotTrace(
            f"bucket {bucket.bucket_id} of group {group.group_id:#x} has more than one end, or "
            f"one that is not last: {actions_text(bucket.actions)}"
        )


def _port_in(name: str, packet: Packet) -> int:
    port = read(packet, name)
    return OFPP_IN_PORT if port == OFPP_IN_PORT & 0xFFFF else port


def _settable(name: str) -> None:
    if name.startswith("ct_") or name in ("conj_id", "eth_type", "nw_proto"):
        raise CannotTrace(f"{name} is set")


def _translate(packet: dict[str, int], connection: Connection, *, reply: bool) -> None:
    """Write the translated tuple into the packet."""
    target = connection.orig.reverse if reply else connection.reply.reverse
    src, dst = address_fields(packet)
    packet[src], packet[dst] = target.src, target.dst
    ports = port_fields(packet)
    if ports:
        packet[ports[0]], packet[ports[1]] = target.src_port, target.dst_port


def _describe(packet: dict[str, int], zone: int, state: int, connection: Connection | None) -> None:
    """The ct_ fields after a recirculation."""
    for name in _CT_FIELDS:
        packet.pop(name, None)
    orig = connection.orig if connection else tuple_of(packet)
    src, dst = address_fields(packet)
    packet |= {
        "ct_state": state,
        "ct_zone": zone,
        "ct_mark": connection.mark if connection else 0,
        "ct_label": connection.label if connection else 0,
        "ct_nw_proto": orig.proto,
        f"ct_{src}": orig.src,
        f"ct_{dst}": orig.dst,
        "ct_tp_src": orig.src_port,
        "ct_tp_dst": orig.dst_port,
    }


def _state_text(state: int) -> str:
    return "".join(f"+{name}" for name, bit in CT_STATE_BITS.items() if state & bit)
