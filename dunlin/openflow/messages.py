"""
What OpenFlow sessions say, as values: what `codec.decode` returns, and what it raises.

`xid` is the 32-bit transaction id; `more` of a dump: further parts with the same xid follow.
"""

from dataclasses import dataclass

import msgspec

from dunlin.openflow.flow import Flow, Group, Match, Meter


class OpenFlowError(Exception):
    """Malformed or unsupported bytes; the message says what."""


class CannotEncode(ValueError):
    """A value that OpenFlow 1.5 has no bytes for; names the flow or group and the field."""


class GroupTooLarge(CannotEncode):
    """The group's buckets do not fit into one message of 64 KiB."""


@dataclass(frozen=True, slots=True)
class Header:
    """The first eight bytes of every message; `length` counts them."""

    version: int
    type: int
    length: int
    xid: int


@dataclass(frozen=True, slots=True)
class Hello:
    """OFPT_HELLO: wire versions that the peer speaks (6: OpenFlow 1.5)."""

    xid: int
    versions: frozenset[int]


@dataclass(frozen=True, slots=True)
class EchoRequest:
    """OFPT_ECHO_REQUEST; answer with the same xid and payload."""

    xid: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class EchoReply:
    """OFPT_ECHO_REPLY."""

    xid: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class ErrorMessage:
    """
    OFPT_ERROR. `xid` is the request's; of a bundled message, that message's.

    `name`: as OVS and the specification say it (`OFPBAC_BAD_OUT_GROUP`), or `type/code` in decimal.
    `data`: at least the first 64 bytes of the request. `code` is the type of an experimenter's
    error.
    """

    xid: int
    type: int
    code: int
    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class FeaturesReply:
    """OFPT_FEATURES_REPLY."""

    xid: int
    dpid: int
    n_tables: int
    capabilities: int
    auxiliary_id: int = 0


@dataclass(frozen=True, slots=True)
class BarrierReply:
    """OFPT_BARRIER_REPLY."""

    xid: int


@dataclass(frozen=True, slots=True)
class RoleReply:
    """OFPT_ROLE_REPLY; `role` as for `encode_role_request`."""

    xid: int
    role: str
    generation_id: int


@dataclass(frozen=True, slots=True)
class BundleReply:
    """OFPT_BUNDLE_CONTROL from the switch; `kind`: "open", "close", "commit" or "discard"."""

    xid: int
    bundle_id: int
    kind: str


class InstalledFlow(msgspec.Struct, frozen=True, gc=False):
    """
    One flow of a dump with its counters.

    `flags` are OFPFF_*; `idle_s`: whole seconds since its last packet.
    """

    flow: Flow
    packets: int = 0
    bytes: int = 0
    duration_s: float = 0.0
    flags: int = 0
    idle_s: int = 0


@dataclass(frozen=True, slots=True)
class FlowDump:
    """One part of the answer to `encode_flow_dump_request`."""

    xid: int
    entries: tuple[InstalledFlow, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class GroupDump:
    """One part of the answer to `encode_group_dump_request`."""

    xid: int
    groups: tuple[Group, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class GroupCounters:
    """Counters of one group; `buckets` holds (packets, bytes) in the order of the buckets."""

    group_id: int
    packets: int
    bytes: int
    duration_s: float
    ref_count: int
    buckets: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class GroupStats:
    """One part of the answer to `encode_group_stats_request`."""

    xid: int
    entries: tuple[GroupCounters, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class PortCounters:
    """Counters of one port, from the switch's side; what OVS does not count is 2**64 - 1."""

    port: int
    duration_s: float
    rx_packets: int
    tx_packets: int
    rx_bytes: int
    tx_bytes: int
    rx_dropped: int
    tx_dropped: int
    rx_errors: int
    tx_errors: int


@dataclass(frozen=True, slots=True)
class PortStats:
    """One part of the answer to `encode_port_stats_request`."""

    xid: int
    entries: tuple[PortCounters, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the switch. `config`: OFPPC_*, `state`: OFPPS_*; `mac` is a 48-bit number."""

    port: int
    name: str
    mac: int
    config: int
    state: int


@dataclass(frozen=True, slots=True)
class PortDesc:
    """One part of the answer to `encode_port_desc_request`."""

    xid: int
    ports: tuple[Port, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class PortStatus:
    """OFPT_PORT_STATUS; `reason`: "add", "delete" or "modify"."""

    xid: int
    reason: str
    port: Port


@dataclass(frozen=True, slots=True)
class TableCounters:
    """Counters of one table; `active` is its number of flows."""

    table: int
    active: int
    lookups: int
    matched: int


@dataclass(frozen=True, slots=True)
class TableStats:
    """One part of the answer to `encode_table_stats_request`."""

    xid: int
    entries: tuple[TableCounters, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class AggregateStats:
    """Answer to `encode_aggregate_request`."""

    xid: int
    packets: int
    bytes: int
    flows: int


@dataclass(frozen=True, slots=True)
class FlowRemoved:
    """OFPT_FLOW_REMOVED; `reason`: "idle_timeout", "hard_timeout", "delete", "group_delete", …."""

    xid: int
    reason: str
    flow: Flow
    packets: int
    bytes: int
    duration_s: float


@dataclass(frozen=True, slots=True)
class MeterDump:
    """OFPMP_METER_CONFIG: the meters of the kind that Dunlin makes; the others by their ids."""

    xid: int
    meters: tuple[Meter, ...]
    others: tuple[int, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class MeterCounters:
    """
    One meter: what came to it, and what it dropped. `flows`: that name it.

    Counters of a meter begin anew when it is made, and go on when it is modified.
    """

    meter_id: int
    flows: int
    packets: int
    bytes: int
    dropped_packets: int
    dropped_bytes: int


@dataclass(frozen=True, slots=True)
class MeterStats:
    """OFPMP_METER."""

    xid: int
    entries: tuple[MeterCounters, ...]
    more: bool


@dataclass(frozen=True, slots=True)
class PacketIn:
    """
    A packet for the controller (OFPT_PACKET_IN or NXT_PACKET_IN2).

    `match`: its metadata; `in_port` 0 when that says none. `userdata`: the action's, only in
    NXT_PACKET_IN2.
    """

    xid: int
    reason: str
    table: int
    cookie: int
    in_port: int
    data: bytes
    match: Match = ()
    userdata: bytes = b""


@dataclass(frozen=True, slots=True)
class Other:
    """A well-formed message that Dunlin does not read."""

    xid: int
    type: int


Message = (
    Hello
    | EchoRequest
    | EchoReply
    | ErrorMessage
    | FeaturesReply
    | BarrierReply
    | RoleReply
    | BundleReply
    | FlowDump
    | GroupDump
    | GroupStats
    | MeterDump
    | MeterStats
    | PortStats
    | PortDesc
    | PortStatus
    | TableStats
    | AggregateStats
    | FlowRemoved
    | PacketIn
    | Other
)
