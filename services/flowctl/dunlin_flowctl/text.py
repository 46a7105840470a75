"""Flows and groups in the words of ovs-ofctl, for people."""

from ipaddress import IPv4Address, IPv6Address

from dunlin.model.addresses import mac_from_int
from dunlin.openflow.fields import CT_STATE_BITS, FIELDS, Form
from dunlin.openflow.flow import (
    OFPP_CONTROLLER,
    OFPP_IN_PORT,
    OFPP_LOCAL,
    Action,
    Ct,
    DecTtl,
    FieldMatch,
    Flow,
    Match,
    Move,
    Nat,
    Output,
    Resubmit,
    SetField,
    ToGroup,
)
from dunlin.pipeline.layout import Table

_PORTS = {OFPP_IN_PORT: "IN_PORT", OFPP_CONTROLLER: "CONTROLLER", OFPP_LOCAL: "LOCAL"}


def table_name(number: int) -> str:
    """The pipeline's name of a table, else its number."""
    try:
        return Table(number).title
    except ValueError:
        return str(number)


def _value(name: str, value: int) -> str:
    spec = FIELDS.get(name)
    form = spec.form if spec is not None else Form.HEX
    match form:
        case Form.DECIMAL:
            return str(value)
        case Form.MAC:
            return mac_from_int(value)
        case Form.IPV4:
            return str(IPv4Address(value))
        case Form.IPV6:
            return str(IPv6Address(value))
        case Form.PORT:
            return _PORTS.get(value, str(value))
        case _:
            return f"{value:#x}"


def _ct_state(item: FieldMatch) -> str:
    mask = item.mask if item.mask is not None else 0xFF
    flags = (name for name, bit in CT_STATE_BITS.items() if mask & bit)
    return "".join(f"{'+' if item.value & CT_STATE_BITS[name] else '-'}{name}" for name in flags)


def match_text(match: Match) -> str:
    """`eth_type=0x800,nw_dst=10.0.0.0/255.0.0.0`; empty: everything."""
    parts = []
    for item in match:
        if item.field == "ct_state":
            parts.append(f"ct_state={_ct_state(item)}")
        else:
            mask = "" if item.mask is None else f"/{_value(item.field, item.mask)}"
            parts.append(f"{item.field}={_value(item.field, item.value)}{mask}")
    return ",".join(parts)


def actions_text(actions: tuple[Action, ...], goto: int | None = None) -> str:
    """`set_field:…->eth_dst,output:3,goto_table:L3Forward`; `drop` when there is nothing."""
    parts = [_action(action) for action in actions]
    if goto is not None:
        parts.append(f"goto_table:{table_name(goto)}")
    return ",".join(parts) or "drop"


def _action(action: object) -> str:
    match action:
        case Output(port):
            return f"output:{_PORTS.get(port, port)}"
        case ToGroup(group_id):
            return f"group:{group_id}"
        case SetField(name, value, mask):
            masked = "" if mask is None else f"/{_value(name, mask)}"
            return f"set_field:{_value(name, value)}{masked}->{name}"
        case Move(src, dst):
            return f"move:{src}[]->{dst}[]"
        case DecTtl():
            return "dec_ttl"
        case Resubmit(table):
            return f"resubmit(,{table_name(table)})"
        case Ct():
            return _ct(action)
        case _:
            return str(action)


def _ct(ct: Ct) -> str:
    parts = ["commit"] * ct.commit + ["force"] * ct.force + [f"zone={ct.zone}"]
    if ct.table is not None:
        parts.append(f"table={table_name(ct.table)}")
    if ct.nat is not None:
        parts.append(_nat(ct.nat))
    if ct.exec:
        parts.append(f"exec({','.join(map(_action, ct.exec))})")
    return f"ct({','.join(parts)})"


def _nat(nat: Nat) -> str:
    if not nat.direction:
        return "nat"
    address = "" if nat.address is None else str(nat.address)
    if isinstance(nat.address, IPv6Address) and nat.port_min:
        address = f"[{address}]"
    if nat.address_max is not None:
        address += f"-{nat.address_max}"
    if nat.port_min:
        address += f":{nat.port_min}"
        address += f"-{nat.port_max}" if nat.port_max not in {0, nat.port_min} else ""
    return f"nat({nat.direction}={address})"


def flow_text(flow: Flow) -> str:
    """One line."""
    match = match_text(flow.match)
    what = f"{match} " if match else ""
    actions = actions_text(flow.actions, flow.goto)
    return f"table={table_name(flow.table)}, priority={flow.priority},{what}actions={actions}"
