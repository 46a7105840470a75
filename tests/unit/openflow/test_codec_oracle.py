"""
The hand-written bytes against two oracles: ryu and its maintained fork os-ken.

Both build each sample from objects of their own. Where neither has a word (ERICOXM's nd_reserved
and nd_options_type, the ct_nw_* fields, output in learn), the contract suite on real OVS is the
oracle.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import pytest

from dunlin.model.addresses import IPAddress
from dunlin.openflow import codec
from dunlin.openflow.fields import FIELDS
from dunlin.openflow.flow import (
    Action,
    Bucket,
    Conjunction,
    Controller,
    Ct,
    CtClear,
    DecTtl,
    Flow,
    Group,
    Learn,
    LearnSpec,
    Match,
    Meter,
    MeterAction,
    Move,
    Nat,
    Output,
    OutputReg,
    Resubmit,
    SetField,
    ToGroup,
)
from dunlin.openflow.wire_fields import FIELD_ORDER
from dunlin.openflow.wire_flow import FlowCommand
from dunlin.openflow.wire_group import GroupCommand
from tests.fixtures.openflow_samples import GROUPS, sample_flows

NO_WORD = {name for name in FIELDS if name.startswith(("ct_nw", "ct_tp"))}
NO_WORD |= {"ct_ipv6_src", "ct_ipv6_dst", "nd_reserved", "nd_options_type"}
NAMES = {
    "nw_proto": "ip_proto", "nw_src": "ipv4_src", "nw_dst": "ipv4_dst", "icmp_type": "icmpv4_type",
    "icmp_code": "icmpv4_code", "nd_target": "ipv6_nd_target", "nd_sll": "ipv6_nd_sll",
    "nd_tll": "ipv6_nd_tll", "tun_id": "tunnel_id", "tun_src": "tun_ipv4_src",
    "tun_dst": "tun_ipv4_dst",
}  # fmt: skip


@dataclass(frozen=True)
class Padded:
    """An action of a library with the padding that both forget when another one follows nat()."""

    action: Any

    def serialize(self, buffer: bytearray, offset: int) -> None:
        """As the libraries' actions have it."""
        start = len(buffer)
        self.action.serialize(buffer, offset)
        buffer += bytes((start - len(buffer)) % 8)


@dataclass(frozen=True)
class Oracle:
    """One library's OpenFlow 1.5."""

    ofp: Any
    parser: Any
    datapath: Any

    @classmethod
    def load(cls, package: str) -> "Oracle":
        """From `ryu` or `os_ken`."""
        protocol = importlib.import_module(f"{package}.ofproto.ofproto_protocol")
        return cls(
            importlib.import_module(f"{package}.ofproto.ofproto_v1_5"),
            importlib.import_module(f"{package}.ofproto.ofproto_v1_5_parser"),
            protocol.ProtocolDesc(6),
        )

    def done(self, message: Any, xid: int) -> bytes:
        """The message's bytes."""
        message.set_xid(xid)
        message.serialize()
        return bytes(message.buf)

    def match(self, fields: Match) -> Any:
        """Its match, in our order: ryu's own puts nw_ttl before eth_type, which OVS refuses."""
        pairs = []
        for item in sorted(fields, key=lambda item: FIELD_ORDER.index(item.field)):
            name = NAMES.get(item.field, item.field)
            number = self.ofp.oxm_from_user_header(name)
            size = (FIELDS[item.field].bits + 7) // 8
            mask = None if item.mask is None else item.mask.to_bytes(size, "big")
            pairs.append(self.ofp.oxm_to_user(number, item.value.to_bytes(size, "big"), mask))
        return self.parser.OFPMatch(_ordered_fields=pairs)

    def action(self, action: Action) -> Any:
        """Its action of the same meaning."""
        p, ofp = self.parser, self.ofp
        match action:
            case Output(port=port):
                return p.OFPActionOutput(port, 0)
            case OutputReg(field=field):
                bits = FIELDS[field].bits
                return p.NXActionOutputReg(bits - 1, NAMES.get(field, field), 0)
            case ToGroup(group_id=group_id):
                return p.OFPActionGroup(group_id)
            case SetField(field=field, value=value, mask=mask):
                return self.set_field(field, value, mask)
            case Move(src=src, dst=dst, bits=bits):
                ids = [
                    p.OFPOxmId(NAMES.get(f, f), length=(FIELDS[f].bits + 7) // 8)
                    for f in (src, dst)
                ]
                return p.OFPActionCopyField(bits or FIELDS[src].bits, 0, 0, ids)
            case DecTtl():
                return p.OFPActionDecNwTtl()
            case CtClear():
                return p.NXActionCTClear()
            case Resubmit(table=table):
                return p.NXActionResubmitTable(ofp.OFPP_IN_PORT & 0xFFFF, table)
            case Conjunction(conj_id=conj_id, clause=clause, clauses=clauses):
                return p.NXActionConjunction(clause - 1, clauses, conj_id)
            case MeterAction(meter_id=meter_id):
                return p.OFPActionMeter(meter_id)
            case Controller(max_len=max_len, userdata=b""):
                return p.OFPActionOutput(ofp.OFPP_CONTROLLER, max_len)
            case Ct():
                return self.ct(action)
            case Learn():
                return self.learn(action)
        raise LookupError(action)

    def set_field(self, field: str, value: int, mask: int | None) -> Any:
        """A set_field of the library, which takes a mask only as a pair."""
        name, size = NAMES.get(field, field), (FIELDS[field].bits + 7) // 8
        number = self.ofp.oxm_from_user_header(name)
        raw = None if mask is None else mask.to_bytes(size, "big")
        name, user = self.ofp.oxm_to_user(number, value.to_bytes(size, "big"), raw)
        return self.parser.OFPActionSetField(**{name: user})

    def ct(self, ct: Ct) -> Any:
        """Connection tracking with what is nested in it."""
        nested = [] if ct.nat is None else [Padded(self.nat(ct.nat))]
        nested += [self.action(action) for action in ct.exec]
        return self.parser.NXActionCT(
            flags=ct.commit | ct.force << 1, zone_src="", zone_ofs_nbits=ct.zone,
            recirc_table=0xFF if ct.table is None else ct.table, alg=0, actions=nested,
        )  # fmt: skip

    def nat(self, nat: Nat) -> Any:
        """Translation inside of connection tracking."""
        ranges: dict[str, Any] = {}
        if nat.address is not None:
            family = f"range_ipv{nat.address.version}"
            ranges[f"{family}_min"] = str(nat.address)
            if nat.address_max is not None:
                ranges[f"{family}_max"] = str(nat.address_max)
        if nat.port_min:
            ranges["range_proto_min"] = nat.port_min
        if nat.port_max:
            ranges["range_proto_max"] = nat.port_max
        flags = {"": 0, "src": 1, "dst": 2}[nat.direction] | nat.random << 4
        return self.parser.NXActionNAT(flags, **ranges)

    def learn(self, learn: Learn) -> Any:
        """A learning action."""
        return self.parser.NXActionLearn(
            learn.table, [self.spec(spec) for spec in learn.specs], learn.idle_timeout_s,
            learn.hard_timeout_s, learn.priority, learn.cookie, learn.delete_learned << 1, 0, 0,
        )  # fmt: skip

    def spec(self, spec: LearnSpec) -> Any:
        """A part of a learning action."""
        kinds = {"match": self.parser.NXFlowSpecMatch, "load": self.parser.NXFlowSpecLoad}
        src = (NAMES.get(spec.src_field, spec.src_field), 0) if spec.src_field else spec.value
        return kinds[spec.kind](src, (NAMES.get(spec.dst_field, spec.dst_field), 0), spec.bits)

    def flow_mod(self, flow: Flow, command: int, xid: int) -> bytes:
        """OFPT_FLOW_MOD."""
        p = self.parser
        instructions = []
        if flow.actions and command != self.ofp.OFPFC_DELETE_STRICT:
            actions = [self.action(action) for action in flow.actions]
            instructions.append(p.OFPInstructionActions(self.ofp.OFPIT_APPLY_ACTIONS, actions))
        if flow.goto is not None and command != self.ofp.OFPFC_DELETE_STRICT:
            instructions.append(p.OFPInstructionGotoTable(flow.goto))
        message = p.OFPFlowMod(
            self.datapath, cookie=flow.cookie, table_id=flow.table, command=command,
            idle_timeout=flow.idle_timeout_s, hard_timeout=flow.hard_timeout_s,
            priority=flow.priority, out_port=self.ofp.OFPP_ANY, out_group=self.ofp.OFPG_ANY,
            match=self.match(flow.match), instructions=instructions,
        )  # fmt: skip
        return self.done(message, xid)

    def group_mod(self, group: Group, command: int, xid: int) -> bytes:
        """OFPT_GROUP_MOD."""
        p, ofp = self.parser, self.ofp
        kinds = {"all": 0, "select": 1, "indirect": 2}
        buckets = [
            p.OFPBucket(
                bucket_id=bucket.bucket_id,
                actions=[self.action(action) for action in bucket.actions],
                properties=[p.OFPGroupBucketPropWeight(type_=0, weight=bucket.weight)]
                if group.type == "select"
                else [],
            )
            for bucket in group.buckets
        ]
        return self.done(
            p.OFPGroupMod(
                self.datapath, command, kinds[group.type], group.group_id,
                command_bucket_id=ofp.OFPG_BUCKET_ALL, buckets=buckets, properties=[],
            ),
            xid,
        )  # fmt: skip


def has_words(flow: Flow) -> bool:
    """Both libraries can say this flow."""
    names = {item.field for item in flow.match}
    names |= {action.field for action in flow.actions if isinstance(action, SetField)}
    userdata = any(isinstance(a, Controller) and a.userdata for a in flow.actions)
    return not names & NO_WORD and not userdata


ORACLES = ("ryu", "os_ken")
_A4, _A6 = IPv4Address("10.0.0.1"), IPv6Address("fd00::1")
_WHERE: tuple[tuple[IPAddress, int, int], ...] = (
    (_A4, 80, 128),
    (_A4, 65535, 1),
    (_A6, 8080, 7),
)
ENDPOINTS = tuple(
    Bucket(
        number,
        (
            Ct(
                10,
                commit=True,
                table=3,
                nat=Nat("dst", ip, ip, port, port),
                exec=(SetField("ct_mark", 1, 0xF),),
            ),
        ),
        weight,
    )
    for number, (ip, port, weight) in enumerate(_WHERE)
)
"""What a Service's groups are made of; ovs-ofctl says it in other words, so no common sample."""

FLOWS = [flow for flow in sample_flows() if has_words(flow)]
FLOWS += [Flow(1, 2, (), bucket.actions) for bucket in ENDPOINTS]


@pytest.fixture(scope="module", params=ORACLES)
def oracle(request: pytest.FixtureRequest) -> Oracle:
    """Each library."""
    return Oracle.load(request.param)


def test_most_samples_can_be_said() -> None:
    """The oracle is not asked for a handful only."""
    assert len(FLOWS) > 0.8 * len(sample_flows())


@pytest.mark.parametrize("flow", FLOWS, ids=lambda flow: f"{flow.table}-{flow.priority}")
def test_flow_mods_are_the_libraries_bytes(oracle: Oracle, flow: Flow) -> None:
    """Add, modify and delete of every sample flow are byte for byte what the library writes."""
    commands: tuple[tuple[FlowCommand, int], ...] = (
        ("add", 0),
        ("modify_strict", 2),
        ("delete_strict", 4),
    )
    for command, number in commands:
        assert codec.encode_flow(flow, command, 7) == oracle.flow_mod(flow, number, 7)


@pytest.mark.parametrize(
    "group",
    [
        *(g for g in GROUPS.values() if not g.selection_method),
        Group(0x100, buckets=ENDPOINTS),
        Group(0x200, buckets=ENDPOINTS[:2]),
    ],
    ids=lambda g: str(g.group_id),
)
def test_group_mods_are_the_libraries_bytes(oracle: Oracle, group: Group) -> None:
    """Add and modify of every sample group are byte for byte what the library writes."""
    commands: tuple[tuple[GroupCommand, int], ...] = (("add", 0), ("modify", 1))
    for command, number in commands:
        assert codec.encode_group(group, command, 9) == oracle.group_mod(group, number, 9)
    empty = Group(group.group_id, group.type)
    assert codec.encode_group(group, "delete", 9) == oracle.group_mod(empty, 2, 9)
    assert codec.as_modify(codec.encode_group(group, "add", 9)) == oracle.group_mod(group, 1, 9)


def test_bundled_message_is_the_libraries_bytes(oracle: Oracle) -> None:
    """A flow modification in a bundle has the bundle message's xid, as OVS demands."""
    flow = FLOWS[0]
    message = oracle.parser.OFPFlowMod(
        oracle.datapath, cookie=flow.cookie, table_id=flow.table, priority=flow.priority,
        match=oracle.match(flow.match),
        instructions=[
            oracle.parser.OFPInstructionActions(4, [oracle.action(a) for a in flow.actions])
        ],
        out_port=oracle.ofp.OFPP_ANY, out_group=oracle.ofp.OFPG_ANY,
    )  # fmt: skip
    message.set_xid(5)
    bundled = oracle.parser.OFPBundleAddMsg(oracle.datapath, 3, 3, message, [])
    ours = codec.encode_bundle_add(3, codec.encode_flow(flow, "add", 1), 5)
    assert ours == oracle.done(bundled, 5)


SESSION: dict[str, tuple[bytes, Callable[[Oracle, Any], Any]]] = {
    "hello": (
        codec.encode_hello(1),
        lambda o, p: p.OFPHello(o.datapath, [p.OFPHelloElemVersionBitmap([6])]),
    ),
    "echo": (codec.encode_echo_request(1, b"a"), lambda o, p: p.OFPEchoRequest(o.datapath, b"a")),
    "echo_reply": (codec.encode_echo_reply(1, b"a"), lambda o, p: p.OFPEchoReply(o.datapath, b"a")),
    "features": (codec.encode_features_request(1), lambda o, p: p.OFPFeaturesRequest(o.datapath)),
    "barrier": (codec.encode_barrier_request(1), lambda o, p: p.OFPBarrierRequest(o.datapath)),
    "role": (
        codec.encode_role_request("master", 9, 1),
        lambda o, p: p.OFPRoleRequest(o.datapath, 2, 0, 9),
    ),
    "meter": (
        codec.encode_meter_mod("modify", Meter(3, 20, 40), 1),
        lambda o, p: p.OFPMeterMod(o.datapath, 1, 2 | 4 | 8, 3, [p.OFPMeterBandDrop(20, 40)]),
    ),
    "meter_add": (
        codec.encode_meter_mod("add", Meter(0x10003, 20, 40, "kbps"), 1),
        lambda o, p: p.OFPMeterMod(o.datapath, 0, 1 | 4 | 8, 0x10003, [p.OFPMeterBandDrop(20, 40)]),
    ),
    "meter_delete": (
        codec.encode_meter_delete(0x10003, 1),
        lambda o, p: p.OFPMeterMod(o.datapath, 2, 0, 0x10003, []),
    ),
    "meter_stats": (
        codec.encode_meter_stats_request(1),
        lambda o, p: p.OFPMeterStatsRequest(o.datapath, 0),
    ),
    "meters": (
        codec.encode_meter_dump_request(1),
        lambda o, p: p.OFPMeterDescStatsRequest(o.datapath, 0),
    ),
    "config": (codec.encode_set_config(128, 1), lambda o, p: p.OFPSetConfig(o.datapath, 0, 128)),
    "open": (
        codec.encode_bundle_open(4, 1),
        lambda o, p: p.OFPBundleCtrlMsg(o.datapath, 4, 0, 3, []),
    ),
    "commit": (
        codec.encode_bundle_commit(4, 1),
        lambda o, p: p.OFPBundleCtrlMsg(o.datapath, 4, 4, 3, []),
    ),
    "discard": (
        codec.encode_bundle_discard(4, 1),
        lambda o, p: p.OFPBundleCtrlMsg(o.datapath, 4, 6, 3, []),
    ),
    "dump": (
        codec.encode_flow_dump_request(1, 2, 3, 4),
        lambda o, p: p.OFPFlowDescStatsRequest(o.datapath, 0, 4, cookie=2, cookie_mask=3),
    ),
    "aggregate": (
        codec.encode_aggregate_request(1, 2, 3),
        lambda o, p: p.OFPAggregateStatsRequest(
            o.datapath, 0, 255, o.ofp.OFPP_ANY, o.ofp.OFPG_ANY, 2, 3, p.OFPMatch()
        ),
    ),
    "delete": (
        codec.encode_flow_delete(2, 3, 4, 1),
        lambda o, p: p.OFPFlowMod(
            o.datapath, 2, 3, 4, 3, priority=0, out_port=o.ofp.OFPP_ANY, out_group=o.ofp.OFPG_ANY
        ),
    ),
    "groups": (
        codec.encode_group_dump_request(1),
        lambda o, p: p.OFPGroupDescStatsRequest(o.datapath, 0),
    ),
    "group_stats": (
        codec.encode_group_stats_request(1),
        lambda o, p: p.OFPGroupStatsRequest(o.datapath, 0),
    ),
    "ports": (
        codec.encode_port_desc_request(1),
        lambda o, p: p.OFPPortDescStatsRequest(o.datapath, 0),
    ),
    "port_stats": (
        codec.encode_port_stats_request(1),
        lambda o, p: p.OFPPortStatsRequest(o.datapath, 0, o.ofp.OFPP_ANY),
    ),
    "tables": (
        codec.encode_table_stats_request(1),
        lambda o, p: p.OFPTableStatsRequest(o.datapath, 0),
    ),
    "experimenter": (
        codec.encode_packet_in_format(1),
        lambda o, p: p.OFPExperimenter(o.datapath, 0x2320, 16, b"\0\0\0\2"),
    ),
    "packet_out": (
        codec.encode_packet_out(b"x" * 60, (Output(1),), 2, 1),
        lambda o, p: p.OFPPacketOut(
            o.datapath,
            o.ofp.OFP_NO_BUFFER,
            p.OFPMatch(in_port=2),
            [p.OFPActionOutput(1, 0)],
            b"x" * 60,
        ),
    ),
    "async": (
        codec.encode_set_async(packet_in=True, flow_removed=False, xid=1),
        lambda o, p: p.OFPSetAsync(
            o.datapath,
            [
                p.OFPAsyncConfigPropReasons(kind, 8, mask)
                for kind, mask in enumerate((0, 59, 7, 7, 0, 0))
            ],
        ),
    ),
}


@pytest.mark.parametrize("name", SESSION)
def test_session_messages_are_the_libraries_bytes(oracle: Oracle, name: str) -> None:
    """Every other message that the codec writes is the same from ryu and from os-ken."""
    ours, build = SESSION[name]
    assert ours == oracle.done(build(oracle, oracle.parser), 1)


def test_every_encoder_is_held_by_an_oracle() -> None:
    """A new `encode_…` needs a sample here; NXT_CT_FLUSH is held by OVS alone."""
    here = {"encode_flow", "encode_group", "encode_bundle_add", "encode_group_delete_all"}
    encoders = {name for name in codec.__all__ if name.startswith("encode_")}
    twice = {"meter_add"}
    assert len(encoders) == len(SESSION) - len(twice) + len(here | {"encode_ct_flush"})


def test_group_delete_all(oracle: Oracle) -> None:
    """Deletion of all groups names OFPG_ALL."""
    assert codec.encode_group_delete_all(4) == oracle.group_mod(Group(0xFFFFFFFC, "all"), 2, 4)
