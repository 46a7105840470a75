"""
OpenFlow 1.5 as bytes and back; the only module that imports ryu.

ryu writes the session's messages. Flows, groups and bundles, of which there are hundreds of
thousands, and all that is read are structs beside this module (`wire_*.py`): ryu's objects write
15,000 flow modifications a second, its readers trust lengths from the network (a length of 0 loops
for ever), and it knows none of ERICOXM, ct_nw_dst and NXT_CT_FLUSH. Tests hold what both can write
to the same bytes.
"""

import struct
from collections.abc import Callable
from typing import Any, Final, Literal

from ryu.ofproto import ofproto_v1_5 as ofp
from ryu.ofproto import ofproto_v1_5_parser
from ryu.ofproto.ofproto_protocol import ProtocolDesc

from dunlin.openflow import wire_session
from dunlin.openflow.flow import OFPP_CONTROLLER, Action, Meter, field_match
from dunlin.openflow.messages import (
    CannotEncode,
    GroupTooLarge,
    Header,
    Message,
    OpenFlowError,
    Other,
)
from dunlin.openflow.wire_actions import encode_actions
from dunlin.openflow.wire_ct import NXT_CT_FLUSH, CtFlush, CtTuple, ct_flush_body
from dunlin.openflow.wire_fields import encode_match
from dunlin.openflow.wire_flow import (
    ANY,
    MAX_LEN,
    VERSION,
    canonical,
    canonical_group,
    decode_flow_removed,
    encode_flow,
    encode_flow_delete,
)
from dunlin.openflow.wire_group import (
    BUNDLE_FLAGS,
    as_modify,
    encode_bundle_add,
    encode_group,
    encode_group_delete_all,
)
from dunlin.openflow.wire_nat import NX_VENDOR

__all__ = [
    "HEADER_LEN", "MAX_LEN", "VERSION", "CannotEncode", "CtFlush", "CtTuple", "GroupTooLarge",
    "Header", "OpenFlowError", "again", "as_modify", "canonical", "canonical_group", "decode",
    "encode_aggregate_request", "encode_barrier_request", "encode_bundle_add",
    "encode_bundle_commit", "encode_bundle_discard", "encode_bundle_open", "encode_ct_flush",
    "encode_echo_reply", "encode_echo_request", "encode_features_request", "encode_flow",
    "encode_flow_delete", "encode_flow_dump_request", "encode_group", "encode_group_delete_all",
    "encode_group_dump_request", "encode_group_stats_request", "encode_hello",
    "encode_meter_delete", "encode_meter_dump_request", "encode_meter_mod",
    "encode_meter_stats_request", "encode_packet_in_format", "encode_packet_out",
    "encode_port_desc_request",
    "encode_port_stats_request", "encode_role_request", "encode_set_async", "encode_set_config",
    "encode_table_stats_request", "parse_header",
]  # fmt: skip

HEADER_LEN: Final = 8
Role = Literal["master", "slave", "equal", "nochange"]

ofp_parser: Any = ofproto_v1_5_parser
_PROTOCOL: Any = ProtocolDesc(VERSION)  # type: ignore[no-untyped-call]
_ROLES: Final = {
    "nochange": ofp.OFPCR_ROLE_NOCHANGE,
    "equal": ofp.OFPCR_ROLE_EQUAL,
    "master": ofp.OFPCR_ROLE_MASTER,
    "slave": ofp.OFPCR_ROLE_SLAVE,
}
_NXT_SET_PACKET_IN_FORMAT: Final = 16
_NXPIF_NXT_PACKET_IN2: Final = 2


# --- out ------------------------------------------------------------------------------------------


def encode_hello(xid: int) -> bytes:
    """OFPT_HELLO for OpenFlow 1.5 only."""
    bitmap = ofp_parser.OFPHelloElemVersionBitmap(versions=[VERSION])
    return _encode(ofp_parser.OFPHello(_PROTOCOL, elements=[bitmap]), xid)


def encode_echo_request(xid: int, payload: bytes = b"") -> bytes:
    """OFPT_ECHO_REQUEST."""
    return _encode(ofp_parser.OFPEchoRequest(_PROTOCOL, data=payload), xid)


def encode_echo_reply(xid: int, payload: bytes) -> bytes:
    """OFPT_ECHO_REPLY; xid and payload are the request's."""
    return _encode(ofp_parser.OFPEchoReply(_PROTOCOL, data=payload), xid)


def encode_features_request(xid: int) -> bytes:
    """OFPT_FEATURES_REQUEST."""
    return _encode(ofp_parser.OFPFeaturesRequest(_PROTOCOL), xid)


def encode_barrier_request(xid: int) -> bytes:
    """OFPT_BARRIER_REQUEST."""
    return _encode(ofp_parser.OFPBarrierRequest(_PROTOCOL), xid)


def encode_role_request(role: Role, generation_id: int, xid: int) -> bytes:
    """OFPT_ROLE_REQUEST. An older `generation_id` (64 bit) than the last one gets OFPRRFC_STALE."""
    request = ofp_parser.OFPRoleRequest(_PROTOCOL, _ROLES[role], 0, generation_id)
    return _encode(request, xid)


def encode_set_config(miss_send_len: int, xid: int) -> bytes:
    """OFPT_SET_CONFIG; fragments as usual. `miss_send_len` in bytes, 0xffff: the whole packet."""
    return _encode(ofp_parser.OFPSetConfig(_PROTOCOL, ofp.OFPC_FRAG_NORMAL, miss_send_len), xid)


def encode_set_async(
    *, packet_in: bool, flow_removed: bool, port_status: bool = True, xid: int
) -> bytes:
    """OFPT_SET_ASYNC: what a master or equal is sent unasked; a slave: port status at most."""
    # A packet whose TTL ran out is the sender's affair: anyone could flood us with those.
    every_packet = 0b111111 & ~(1 << ofp.OFPR_INVALID_TTL)
    every_removal = 0b111111
    every_port = 0b111
    masks = {
        ofp.OFPACPT_PACKET_IN_SLAVE: 0,
        ofp.OFPACPT_PACKET_IN_MASTER: every_packet if packet_in else 0,
        ofp.OFPACPT_PORT_STATUS_SLAVE: every_port if port_status else 0,
        ofp.OFPACPT_PORT_STATUS_MASTER: every_port if port_status else 0,
        ofp.OFPACPT_FLOW_REMOVED_SLAVE: 0,
        ofp.OFPACPT_FLOW_REMOVED_MASTER: every_removal if flow_removed else 0,
    }
    reasons = [ofp_parser.OFPAsyncConfigPropReasons(kind, 8, mask) for kind, mask in masks.items()]
    return _encode(ofp_parser.OFPSetAsync(_PROTOCOL, reasons), xid)


def encode_meter_mod(command: Literal["add", "modify"], meter: Meter, xid: int) -> bytes:
    """OFPT_METER_MOD: what is beyond the rate is dropped; counted by the switch."""
    unit = ofp.OFPMF_PKTPS if meter.unit == "pps" else ofp.OFPMF_KBPS
    flags = unit | ofp.OFPMF_BURST | ofp.OFPMF_STATS
    band = ofp_parser.OFPMeterBandDrop(rate=meter.rate, burst_size=meter.burst)
    number = ofp.OFPMC_ADD if command == "add" else ofp.OFPMC_MODIFY
    return _encode(ofp_parser.OFPMeterMod(_PROTOCOL, number, flags, meter.meter_id, [band]), xid)


def encode_meter_delete(meter_id: int, xid: int = 0) -> bytes:
    """OFPT_METER_MOD: Open vSwitch deletes the flows that name it, too."""
    return _encode(ofp_parser.OFPMeterMod(_PROTOCOL, ofp.OFPMC_DELETE, 0, meter_id, []), xid)


def encode_meter_dump_request(xid: int) -> bytes:
    """OFPMP_METER_CONFIG (OpenFlow 1.5: _DESC) of all meters."""
    return _encode_meter_request(10, xid)


def encode_meter_stats_request(xid: int) -> bytes:
    """OFPMP_METER of all meters."""
    return _encode_meter_request(9, xid)


def _encode_meter_request(kind: int, xid: int) -> bytes:
    # ryu has no request of kind 10 in 1.5, and calls its parts by other names in each version.
    body = struct.pack("!HH4xI4x", kind, 0, ofp.OFPM_ALL)
    head = struct.pack("!BBHI", VERSION, ofp.OFPT_MULTIPART_REQUEST, HEADER_LEN + len(body), xid)
    return head + body


def encode_packet_in_format(xid: int) -> bytes:
    """NXT_SET_PACKET_IN_FORMAT: packets come as NXT_PACKET_IN2, the only form with userdata."""
    body = struct.pack("!I", _NXPIF_NXT_PACKET_IN2)
    return encode_experimenter(NX_VENDOR, _NXT_SET_PACKET_IN_FORMAT, body, xid)


def encode_ct_flush(flush: CtFlush, xid: int = 0) -> bytes:
    """
    NXT_CT_FLUSH (OVS 3.1 or later): end the connections that `flush` names.

    Raises:
        CannotEncode: a zone, protocol or port wider than its field.
    """
    try:
        body = ct_flush_body(flush)
    except struct.error as error:
        raise CannotEncode(f"{flush}: {error}") from error
    return encode_experimenter(NX_VENDOR, NXT_CT_FLUSH, body, xid)


def encode_experimenter(experimenter: int, kind: int, body: bytes, xid: int) -> bytes:
    """OFPT_EXPERIMENTER."""
    return _encode(ofp_parser.OFPExperimenter(_PROTOCOL, experimenter, kind, body), xid)


def encode_bundle_open(bundle_id: int, xid: int) -> bytes:
    """Open an atomic, ordered bundle."""
    return _encode_bundle_control(bundle_id, ofp.OFPBCT_OPEN_REQUEST, xid)


def encode_bundle_commit(bundle_id: int, xid: int) -> bytes:
    """Close and apply: all or nothing."""
    return _encode_bundle_control(bundle_id, ofp.OFPBCT_COMMIT_REQUEST, xid)


def encode_bundle_discard(bundle_id: int, xid: int) -> bytes:
    """Forget a bundle."""
    return _encode_bundle_control(bundle_id, ofp.OFPBCT_DISCARD_REQUEST, xid)


def _encode_bundle_control(bundle_id: int, kind: int, xid: int) -> bytes:
    message = ofp_parser.OFPBundleCtrlMsg(_PROTOCOL, bundle_id, kind, BUNDLE_FLAGS, [])
    return _encode(message, xid)


def encode_flow_dump_request(
    xid: int, cookie: int = 0, cookie_mask: int = 0, table: int | None = None
) -> bytes:
    """OFPMP_FLOW_DESC: flows of one table (None: all) whose cookie agrees under the mask."""
    return _encode(
        ofp_parser.OFPFlowDescStatsRequest(
            _PROTOCOL, 0, _table(table), ANY, ANY, cookie, cookie_mask, ofp_parser.OFPMatch()
        ),
        xid,
    )


def encode_aggregate_request(
    xid: int, cookie: int = 0, cookie_mask: int = 0, table: int | None = None
) -> bytes:
    """OFPMP_AGGREGATE_STATS over the flows that `encode_flow_dump_request` would dump."""
    return _encode(
        ofp_parser.OFPAggregateStatsRequest(
            _PROTOCOL, 0, _table(table), ANY, ANY, cookie, cookie_mask, ofp_parser.OFPMatch()
        ),
        xid,
    )


def again(message: bytes, xid: int) -> bytes:
    """The same message with another xid: ryu's encoder takes longer than most answers to it."""
    return message[:4] + xid.to_bytes(4, "big") + message[8:]


def encode_group_dump_request(xid: int) -> bytes:
    """OFPMP_GROUP_DESC of all groups."""
    return _encode(ofp_parser.OFPGroupDescStatsRequest(_PROTOCOL, 0, ofp.OFPG_ALL), xid)


def encode_group_stats_request(xid: int) -> bytes:
    """OFPMP_GROUP_STATS of all groups."""
    return _encode(ofp_parser.OFPGroupStatsRequest(_PROTOCOL, 0, ofp.OFPG_ALL), xid)


def encode_port_stats_request(xid: int) -> bytes:
    """OFPMP_PORT_STATS of all ports."""
    return _encode(ofp_parser.OFPPortStatsRequest(_PROTOCOL, 0, ofp.OFPP_ANY), xid)


def encode_port_desc_request(xid: int) -> bytes:
    """OFPMP_PORT_DESC of all ports."""
    return _encode(ofp_parser.OFPPortDescStatsRequest(_PROTOCOL, 0, ofp.OFPP_ANY), xid)


def encode_table_stats_request(xid: int) -> bytes:
    """OFPMP_TABLE_STATS."""
    return _encode(ofp_parser.OFPTableStatsRequest(_PROTOCOL, 0), xid)


def encode_packet_out(
    data: bytes, actions: tuple[Action, ...], in_port: int = OFPP_CONTROLLER, xid: int = 0
) -> bytes:
    """
    OFPT_PACKET_OUT of one packet.

    Raises:
        CannotEncode: packet and actions exceed 64 KiB.
    """
    match = encode_match((field_match("in_port", in_port),))
    encoded = encode_actions(actions)
    length = 16 + len(match) + len(encoded) + len(data)
    if length > MAX_LEN:
        raise CannotEncode(f"a packet-out of {length} bytes")
    head = struct.pack("!BBHIIHxx", VERSION, ofp.OFPT_PACKET_OUT, length, xid, ANY, len(encoded))
    return head + match + encoded + data


def _table(table: int | None) -> int:
    return ofp.OFPTT_ALL if table is None else table


def _encode(message: Any, xid: int) -> bytes:
    message.set_xid(xid)
    message.serialize()
    return bytes(message.buf)


# --- in -------------------------------------------------------------------------------------------


def parse_header(data: bytes) -> Header:
    """
    The header of what starts with `data`.

    Raises:
        OpenFlowError: fewer than 8 bytes, a length below 8, or a version that is none.
    """
    if len(data) < HEADER_LEN:
        raise OpenFlowError(f"a header of {len(data)} bytes")
    header = Header(*struct.unpack_from("!BBHI", data))
    if header.length < HEADER_LEN:
        raise OpenFlowError(f"message of type {header.type} says it has {header.length} bytes")
    if header.version != VERSION and header.type not in (ofp.OFPT_HELLO, ofp.OFPT_ERROR):
        raise OpenFlowError(f"message of type {header.type} in wire version {header.version}")
    if not header.version:
        raise OpenFlowError("wire version 0")
    return header


def decode(data: bytes) -> Message:
    """
    One whole message from a switch.

    Raises:
        OpenFlowError: malformed in any way, or not exactly one message.
    """
    header = parse_header(data)
    if header.length != len(data):
        raise OpenFlowError(f"{len(data)} bytes of a message that has {header.length}")
    read = _READERS.get(header.type)
    return read(data, header.xid) if read else Other(header.xid, header.type)


def _decode_error(data: bytes, xid: int) -> Message:
    return wire_session.decode_error(data, xid, lambda kind, code: _ERRORS.get((kind, code)))


_READERS: Final[dict[int, Callable[[bytes, int], Message]]] = {
    ofp.OFPT_HELLO: wire_session.decode_hello,
    ofp.OFPT_ERROR: _decode_error,
    ofp.OFPT_ECHO_REQUEST: wire_session.decode_echo_request,
    ofp.OFPT_ECHO_REPLY: wire_session.decode_echo_reply,
    ofp.OFPT_EXPERIMENTER: wire_session.decode_experimenter,
    ofp.OFPT_FEATURES_REPLY: wire_session.decode_features_reply,
    ofp.OFPT_PACKET_IN: wire_session.decode_packet_in,
    ofp.OFPT_FLOW_REMOVED: decode_flow_removed,
    ofp.OFPT_PORT_STATUS: wire_session.decode_port_status,
    ofp.OFPT_MULTIPART_REPLY: wire_session.decode_multipart,
    ofp.OFPT_BARRIER_REPLY: wire_session.decode_barrier_reply,
    ofp.OFPT_ROLE_REPLY: wire_session.decode_role_reply,
    ofp.OFPT_BUNDLE_CONTROL: wire_session.decode_bundle_reply,
}

# In the order of error types, 0 …; ryu names each code by one of these prefixes.
_ERROR_PREFIXES: Final = (
    "OFPHFC_", "OFPBRC_", "OFPBAC_", "OFPBIC_", "OFPBMC_", "OFPFMFC_", "OFPGMFC_", "OFPPMFC_",
    "OFPTMFC_", "OFPQOFC_", "OFPSCFC_", "OFPRRFC_", "OFPMMFC_", "OFPTFFC_", "OFPBPC_", "OFPACFC_",
    "OFPMOFC_", "OFPBFC_",
)  # fmt: skip
_ERRORS: Final[dict[tuple[int, int], str]] = {
    (kind, value): name
    for kind, prefix in enumerate(_ERROR_PREFIXES)
    for name, value in vars(ofp).items()
    if name.startswith(prefix)
}
