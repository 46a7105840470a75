"""
Flows and groups for people, in the syntax of ovs-ofctl(8).

With numbers (no `Names`) ovs-ofctl reads the text as the same flow; with names it is for reading
only: tables by name, cookies as the intent that they came from.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

from dunlin.model.addresses import IPAddress, mac_from_int
from dunlin.openflow.cookie import CookieIndex, kind_of_cookie
from dunlin.openflow.fields import CT_STATE_BITS, ETH_ARP, ETH_IPV4, ETH_IPV6, FIELDS, Form
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
    LearnSpec,
    Match,
    MeterAction,
    Move,
    Nat,
    Output,
    OutputReg,
    Program,
    Resubmit,
    SetField,
    ToGroup,
    Unknown,
)
from dunlin.openflow.wire_fields import FIELD_ORDER
from dunlin.openflow.wire_group import method_parameter

_PORTS = {OFPP_IN_PORT: "IN_PORT", OFPP_CONTROLLER: "CONTROLLER", OFPP_LOCAL: "LOCAL"}
_FAMILIES = {ETH_IPV4: "ip", ETH_IPV6: "ipv6", ETH_ARP: "arp"}
_PROTOCOLS = {
    (ETH_IPV4, 1): "icmp",
    (ETH_IPV4, 6): "tcp",
    (ETH_IPV4, 17): "udp",
    (ETH_IPV4, 132): "sctp",
    (ETH_IPV6, 58): "icmp6",
    (ETH_IPV6, 6): "tcp6",
    (ETH_IPV6, 17): "udp6",
    (ETH_IPV6, 132): "sctp6",
}


@dataclass(frozen=True, slots=True)
class Names:
    """What numbers mean: tables by number; intents by cookie."""

    tables: Mapping[int, str] = field(default_factory=dict)
    cookies: CookieIndex | None = None

    def table(self, number: int) -> str:
        """Its name, else its number."""
        return self.tables.get(number, str(number))

    def cookie(self, cookie: int) -> str:
        """`intent id`, or what the bits alone say: `service:0xd104…`, `0x5`."""
        intent_id = self.cookies.lookup(cookie) if self.cookies else None
        kind = kind_of_cookie(cookie) if self.cookies else None
        if intent_id is not None:
            return str(intent_id)
        return f"{kind}:{cookie:#x}" if kind else f"{cookie:#x}"


NUMBERS = Names()


def program_text(program: Program, names: Names = NUMBERS) -> str:
    """Groups by id, then flows by table, priority (high first) and text; a line each."""
    lines = [group_text(group, names) for group in sorted(program.groups, key=_group_id)]
    flows = sorted((f.table, -f.priority, flow_text(f, names)) for f in program.flows)
    return "".join(f"{line}\n" for line in [*lines, *(text for _, _, text in flows)])


def _group_id(group: Group) -> int:
    return group.group_id


def flow_text(flow: Flow, names: Names = NUMBERS) -> str:
    """One flow, as `ovs-ofctl add-flow` takes it."""
    parts = [f"table={names.table(flow.table)}", f"priority={flow.priority}"]
    if flow.idle_timeout_s:
        parts.append(f"idle_timeout={flow.idle_timeout_s}")
    if flow.hard_timeout_s:
        parts.append(f"hard_timeout={flow.hard_timeout_s}")
    match = match_text(flow.match)
    if match:
        parts.append(match)
    actions = actions_text(flow.actions, names)
    if flow.goto is not None:
        goto = f"goto_table:{names.table(flow.goto)}"
        actions = f"{actions},{goto}" if flow.actions else goto
    return f"cookie={names.cookie(flow.cookie)}, {','.join(parts)} actions={actions}"


def group_text(group: Group, names: Names = NUMBERS) -> str:
    """One group, as `ovs-ofctl add-group` takes it."""
    method = ""
    if group.selection_method:
        method = f",selection_method={group.selection_method}"
        parameter = method_parameter(group.selection_method, group.hash_basis)
        method += f",selection_method_param={parameter}" if parameter else ""
        method += f",fields({','.join(group.hash_fields)})" if group.hash_fields else ""
    buckets = "".join(f",bucket={_bucket(b, group.type, names)}" for b in group.buckets)
    return f"group_id={group.group_id},type={_group_type(group.type)}{method}{buckets}"


def _group_type(kind: str) -> str:
    return "ff" if kind == "fast_failover" else kind


def _bucket(bucket: Bucket, kind: str, names: Names) -> str:
    weight = f"weight:{bucket.weight}," if kind == "select" else ""
    return f"bucket_id:{bucket.bucket_id},{weight}actions={actions_text(bucket.actions, names)}"


# --- matches --------------------------------------------------------------------------------------


def match_text(match: Match) -> str:
    """Prerequisites first, the usual ones by their short names (`tcp`); "" matches all."""
    known = {item.field: item for item in match}
    parts = []
    eth_type = known.get("eth_type")
    if eth_type is not None and eth_type.mask is None and eth_type.value in _FAMILIES:
        proto = known.get("nw_proto")
        short = _PROTOCOLS.get((eth_type.value, proto.value)) if proto else None
        parts.append(short or _FAMILIES[eth_type.value])
        del known["eth_type"]
        if short:
            del known["nw_proto"]
    ordered = sorted(known.values(), key=lambda item: _place(item.field))
    return ",".join([*parts, *map(_field_match, ordered)])


def _place(name: str) -> tuple[int, str]:
    return (FIELD_ORDER.index(name) if name in FIELD_ORDER else len(FIELD_ORDER), name)


def _field_match(item: FieldMatch) -> str:
    return f"{item.field}={value_text(item.field, item.value, item.mask)}"


def value_text(name: str, value: int, mask: int | None = None) -> str:
    """A field's value, with its mask if it has one, in the field's form."""
    spec = FIELDS.get(name)
    form = spec.form if spec else Form.HEX
    if form is Form.CT_STATE:
        return _ct_state(value, 0xFF if mask is None else mask)
    if mask is None:
        return _plain(form, value)
    if form in (Form.IPV4, Form.IPV6) and spec is not None:
        length = mask.bit_count()
        if mask == ((1 << length) - 1) << (spec.bits - length):
            return f"{_plain(form, value)}/{length}"
    form = Form.HEX if form in (Form.DECIMAL, Form.PORT) else form
    return f"{_plain(form, value)}/{_plain(form, mask)}"


def _plain(form: Form, value: int) -> str:
    match form:
        case Form.MAC:
            return mac_from_int(value)
        case Form.IPV4:
            return str(IPv4Address(value))
        case Form.IPV6:
            return str(IPv6Address(value))
        case Form.PORT:
            return _PORTS.get(value, str(value))
        case Form.DECIMAL:
            return str(value)
        case _:
            return f"{value:#x}"


def _ct_state(value: int, mask: int) -> str:
    signs = {name: "+" if value & bit else "-" for name, bit in CT_STATE_BITS.items() if mask & bit}
    return "".join(f"{sign}{name}" for name, sign in signs.items())


# --- actions --------------------------------------------------------------------------------------


def actions_text(actions: tuple[Action, ...], names: Names = NUMBERS) -> str:
    """All of them; `drop` for none."""
    return ",".join(action_text(action, names) for action in actions) or "drop"


def action_text(action: Action, names: Names = NUMBERS) -> str:
    """One action."""
    match action:
        case Output(port=port):
            return _PORTS.get(port, f"output:{port}")
        case OutputReg(field=name):
            return f"output:{name}[]"
        case ToGroup(group_id=group_id):
            return f"group:{group_id}"
        case SetField(field=name, value=value, mask=mask):
            return f"set_field:{value_text(name, value, mask)}->{name}"
        case Move(src=src, dst=dst, bits=bits):
            return f"move:{_part(src, bits)}->{_part(dst, bits)}"
        case DecTtl():
            return "dec_ttl"
        case Ct():
            return _ct(action, names)
        case CtClear():
            return "ct_clear"
        case Resubmit(table=table):
            return f"resubmit(,{names.table(table)})"
        case Conjunction(conj_id=conj_id, clause=clause, clauses=clauses):
            return f"conjunction({conj_id},{clause}/{clauses})"
        case Learn():
            return _learn(action, names)
        case Controller(max_len=max_len, userdata=userdata, meter_id=meter_id):
            if not userdata:
                return f"CONTROLLER:{max_len}"
            meter = f",meter_id={meter_id}" if meter_id else ""
            return f"controller(max_len={max_len},userdata={userdata.hex('.')}{meter})"
        case MeterAction(meter_id=meter_id):
            return f"meter:{meter_id}"
        case Unknown(what=what, data=data):
            return f"unknown_{what.replace(' ', '_')}({data.hex()})"


def _ct(ct: Ct, names: Names) -> str:
    parts = ["commit"] * ct.commit + ["force"] * ct.force
    if ct.table is not None:
        parts.append(f"table={names.table(ct.table)}")
    parts.append(f"zone={ct.zone}")
    if ct.nat is not None:
        parts.append(_nat(ct.nat))
    if ct.exec:
        parts.append(f"exec({actions_text(ct.exec)})")
    return f"ct({','.join(parts)})"


def _nat(nat: Nat) -> str:
    if not nat.direction:
        return "nat"
    text = ""
    if nat.address is not None:
        text = _address(nat.address, brackets=bool(nat.port_min))
        if nat.address_max is not None:
            text += f"-{_address(nat.address_max, brackets=bool(nat.port_min))}"
    if nat.port_min:
        text += f":{nat.port_min}" + (f"-{nat.port_max}" if nat.port_max else "")
    return f"nat({nat.direction}{'=' if text else ''}{text}{',random' if nat.random else ''})"


def _address(address: IPAddress, *, brackets: bool) -> str:
    return f"[{address}]" if brackets and address.version == 6 else str(address)


def _learn(learn: Learn, names: Names) -> str:
    parts = [f"table={names.table(learn.table)}"]
    if learn.idle_timeout_s:
        parts.append(f"idle_timeout={learn.idle_timeout_s}")
    if learn.hard_timeout_s:
        parts.append(f"hard_timeout={learn.hard_timeout_s}")
    parts += [f"priority={learn.priority}", *["delete_learned"] * learn.delete_learned]
    parts.append(f"cookie={names.cookie(learn.cookie)}")
    return f"learn({','.join([*parts, *map(_spec, learn.specs)])})"


def _spec(spec: LearnSpec) -> str:
    destination = f"{spec.dst_field}{_bits(spec.dst_field, spec.bits)}"
    source = f"{spec.src_field}{_bits(spec.src_field, spec.bits)}" if spec.src_field else ""
    if spec.kind == "load":
        return f"load:{source or hex(spec.value)}->{destination}"
    if source:
        return f"{destination}={source}"
    whole = spec.bits == FIELDS[spec.dst_field].bits
    return f"{spec.dst_field if whole else destination}={value_text(spec.dst_field, spec.value)}"


def _bits(name: str, bits: int) -> str:
    """The lowest `bits` of a field; 0: all."""
    return "[]" if bits in (0, FIELDS[name].bits) else f"[0..{bits - 1}]"


def _part(name: str, bits: int) -> str:
    """Of a field in move(); ovs-ofctl's "in_port" has 16 bits."""
    shown = "in_port_oxm" if name == "in_port" else name
    return f"{shown}{_bits(name, bits)}"
