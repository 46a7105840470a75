"""
Flows and groups: what a switch holds.

Hundreds of thousands of these values live at once: they are made, hashed and compared in C, and
the garbage collector, which would look at each of them again and again, knows none (no cycle of
them is possible).
"""

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from operator import attrgetter
from typing import Literal

import msgspec

from dunlin.model.addresses import IPAddress, IPNetwork, MacAddress, mac_to_int
from dunlin.openflow.fields import CT_STATE_BITS, FIELDS

# Reserved OpenFlow port numbers.
OFPP_IN_PORT = 0xFFFFFFF8
OFPP_NORMAL = 0xFFFFFFFA
OFPP_CONTROLLER = 0xFFFFFFFD
OFPP_LOCAL = 0xFFFFFFFE


class FieldMatch(msgspec.Struct, frozen=True, gc=False, order=True, cache_hash=True):
    """`field` & `mask` == `value`; `mask` None: all bits. `value` has no bit beyond the mask."""

    field: str
    value: int
    mask: int | None = None


Match = tuple[FieldMatch, ...]
"""Sorted by field name, each field once: equal matches are equal values."""

_NAME_OF = attrgetter("field")
MatchValue = int | IPAddress | IPNetwork | str | tuple[int, int]


def match(**fields: MatchValue) -> Match:
    """
    A match from keywords named as in ovs-fields(7).

    Values: int; (value, mask); an address; a network (masked); a MAC address as text; for
    ct_state the text of ovs-ofctl (`"+trk+new-rpl"`).
    """
    return tuple([field_match(name, fields[name]) for name in sorted(fields)])


def in_order(items: Iterable[FieldMatch]) -> Match:
    """A match of these, all of different fields."""
    return tuple(sorted(items, key=_NAME_OF))


def field_match(name: str, value: MatchValue) -> FieldMatch:
    """One field of a match; see `match`."""
    spec = FIELDS[name]
    if isinstance(value, str):
        if name == "ct_state":
            bits, mask = parse_ct_state(value)
            return FieldMatch(name, bits, mask)
        return FieldMatch(name, mac_to_int(MacAddress(value)))
    if isinstance(value, tuple):
        bits, mask = value
        return FieldMatch(name, bits & mask, None if mask == spec.all_ones else mask)
    if isinstance(value, (IPv4Network, IPv6Network)):
        mask = int(value.netmask)
        return FieldMatch(name, int(value.network_address), None if mask == spec.all_ones else mask)
    if isinstance(value, (IPv4Address, IPv6Address)):
        return FieldMatch(name, int(value))
    assert 0 <= value <= spec.all_ones, (name, value)
    return FieldMatch(name, value)


def parse_ct_state(text: str) -> tuple[int, int]:
    """(value, mask) of `+trk+new-est`."""
    value = mask = 0
    for word in text.replace("+", " +").replace("-", " -").split():
        bit = CT_STATE_BITS[word[1:]]
        mask |= bit
        value |= bit if word[0] == "+" else 0
    return value, mask


def with_fields(base: Match, extra: Match) -> Match:
    """Both; a field in both must be equal."""
    if not extra:
        return base
    merged = {item.field: item for item in base}
    for item in extra:
        assert merged.setdefault(item.field, item) == item, item.field
    return in_order(merged.values())


# --- actions: ovs-actions(7) ----------------------------------------------------------------------


class Output(msgspec.Struct, frozen=True, gc=False):
    """`output:port`; OFPP_IN_PORT sends back where it came from."""

    port: int


class ToGroup(msgspec.Struct, frozen=True, gc=False):
    """`group:id`."""

    group_id: int


class SetField(msgspec.Struct, frozen=True, gc=False):
    """`set_field:value[/mask]->field`."""

    field: str
    value: int
    mask: int | None = None


class Move(msgspec.Struct, frozen=True, gc=False):
    """
    `move:src[]->dst[]` of whole fields of equal width.

    `bits` > 0: of both fields only the lowest `bits`, and their widths may differ.
    """

    src: str
    dst: str
    bits: int = 0


class DecTtl(msgspec.Struct, frozen=True, gc=False):
    """`dec_ttl`."""


class Nat(msgspec.Struct, frozen=True, gc=False):
    """
    `nat(src|dst=address[-address][:port[-port]])`; without `direction`, `nat`: as the entry says.

    Addresses are inclusive; `port_min` 0: any port.
    """

    direction: str = ""
    address: IPAddress | None = None
    address_max: IPAddress | None = None
    port_min: int = 0
    port_max: int = 0
    random: bool = False


class Ct(msgspec.Struct, frozen=True, gc=False):
    """`ct([commit,][force,][zone=n,][table=t,][nat…,][exec(…)])`; `exec` only with commit."""

    zone: int
    commit: bool = False
    force: bool = False
    table: int | None = None
    nat: Nat | None = None
    exec: tuple["SetField | Move", ...] = ()


class Resubmit(msgspec.Struct, frozen=True, gc=False):
    """`resubmit(,table)`: look up there, then go on with the next action."""

    table: int


class Conjunction(msgspec.Struct, frozen=True, gc=False):
    """`conjunction(conj_id, clause/clauses)`; clause counts from 1."""

    conj_id: int
    clause: int
    clauses: int


class LearnSpec(msgspec.Struct, frozen=True, gc=False):
    """
    One part of a learned flow.

    `kind`: "match" or "load". From a `src_field` or the constant `value`; to `dst_field`; of both
    fields the lowest `bits`.
    """

    kind: str
    dst_field: str
    bits: int
    src_field: str = ""
    value: int = 0


class Learn(msgspec.Struct, frozen=True, gc=False):
    """`learn(table=…,…)`; time-outs in seconds, 16 bits; cookie as for flows."""

    table: int
    priority: int
    cookie: int
    specs: tuple[LearnSpec, ...]
    idle_timeout_s: int = 0
    hard_timeout_s: int = 0
    delete_learned: bool = False


class Controller(msgspec.Struct, frozen=True, gc=False):
    """
    `controller(max_len=…,userdata=…,meter_id=…)`: to the controller, with opaque data.

    `meter_id` 0: no meter but the switch's own; only with `userdata`.
    """

    max_len: int = 0xFFFF
    userdata: bytes = b""
    meter_id: int = 0


class MeterAction(msgspec.Struct, frozen=True, gc=False):
    """`meter:id` first of all actions."""

    meter_id: int


class OutputReg(msgspec.Struct, frozen=True, gc=False):
    """`output:field[]`: to the port whose number a whole 16- or 32-bit field holds."""

    field: str


class CtClear(msgspec.Struct, frozen=True, gc=False):
    """`ct_clear`: the packet is untracked from here on."""


class Unknown(msgspec.Struct, frozen=True, gc=False):
    """
    What a switch holds and Dunlin has no word for; never part of a desired flow.

    `what`: "action", "instruction" or "bucket property"; `data`: its bytes as on the wire.
    """

    what: str
    data: bytes


Action = (
    Output
    | OutputReg
    | ToGroup
    | SetField
    | Move
    | DecTtl
    | Ct
    | CtClear
    | Resubmit
    | Conjunction
    | Learn
    | Controller
    | MeterAction
    | Unknown
)


def set_field(name: str, value: MatchValue) -> SetField:
    """`SetField` from the same values that `match` takes."""
    item = field_match(name, value)
    return SetField(name, item.value, item.mask)


# --- what a switch holds --------------------------------------------------------------------------


class Flow(msgspec.Struct, frozen=True, gc=False):
    """
    One flow entry. Identity on the switch: (table, priority, match).

    `actions` are applied (apply_actions), then `goto` (None: the end; no actions and no goto:
    drop). Time-outs in seconds, 0: none.
    """

    table: int
    priority: int
    match: Match
    actions: tuple[Action, ...] = ()
    goto: int | None = None
    cookie: int = 0
    idle_timeout_s: int = 0
    hard_timeout_s: int = 0

    @property
    def key(self) -> tuple[int, int, Match]:
        """What names this flow on its switch."""
        return (self.table, self.priority, self.match)


class Bucket(msgspec.Struct, frozen=True, gc=False):
    """One bucket of a select group; `weight` has no unit."""

    bucket_id: int
    actions: tuple[Action, ...]
    weight: int = 100


class Group(msgspec.Struct, frozen=True, gc=False):
    """
    One group entry; identity is `group_id`.

    `selection_method` "" is OVS's default for select groups (dp_hash, basis 0); with "dp_hash",
    `hash_basis` (32 bits) makes the choice independent of other groups'. With "hash", `hash_fields`
    (all bits of each, sorted by name) are what is hashed.
    """

    group_id: int
    type: str = "select"
    buckets: tuple[Bucket, ...] = ()
    selection_method: str = ""
    hash_basis: int = 0
    hash_fields: tuple[str, ...] = ()


class Meter(msgspec.Struct, frozen=True, gc=False):
    """
    A meter that drops what is beyond `rate` a second, `burst` at once; identity is `meter_id`.

    `unit`: pps (rate and burst in packets) or kbps (in 1,000 bits).
    """

    meter_id: int
    rate: int
    burst: int
    unit: Literal["pps", "kbps"] = "pps"


class Program(msgspec.Struct, frozen=True, gc=False):
    """Flows, groups and meters, as one intent or a whole switch needs them; no key twice."""

    flows: tuple[Flow, ...] = ()
    groups: tuple[Group, ...] = ()
    meters: tuple[Meter, ...] = ()

    def __add__(self, other: "Program") -> "Program":
        """Both, in order."""
        return Program(
            self.flows + other.flows, self.groups + other.groups, self.meters + other.meters
        )


def meters_referred(flow: Flow) -> Iterable[int]:
    """Ids of the meters that a flow's actions name."""
    return (action.meter_id for action in flow.actions if isinstance(action, MeterAction))


def groups_referred(flow: Flow) -> Iterable[int]:
    """Ids of the groups that a flow's actions name."""
    return (action.group_id for action in flow.actions if isinstance(action, ToGroup))
