"""The tracer against real Open vSwitch: the same packets through the same flows end alike."""

import random
import re
from ipaddress import IPv4Address, IPv6Address

import pytest

from dunlin.openflow import codec
from dunlin.openflow.conntrack import Conntrack
from dunlin.openflow.flow import (
    Action,
    Bucket,
    Conjunction,
    Controller,
    Ct,
    DecTtl,
    Flow,
    Group,
    MatchValue,
    Nat,
    Output,
    Program,
    Resubmit,
    SetField,
    ToGroup,
    match,
    set_field,
)
from dunlin.openflow.messages import ErrorMessage, PacketIn
from dunlin.openflow.packet import Packet, packet
from dunlin.openflow.trace import Trace, Tracer
from tests.fixtures.frames import fields_of, frame
from tests.fixtures.ovs_dummy import OpenFlowSocket, OvsBridge

pytestmark = pytest.mark.ovs

CLIENTS, SERVERS = (11, 12), (21, 22, 23)
VIP, VIP6, GATEWAY = IPv4Address("10.96.0.1"), IPv6Address("fd96::1"), IPv4Address("10.0.0.1")
ZONE, SNAT_ZONE = 10, 11
Address = IPv4Address | IPv6Address


def end(number: int) -> Controller:
    """An end that says, with the packet, that the packet came there."""
    return Controller(userdata=bytes([number]))


def v4(host: int) -> IPv4Address:
    """A host's IPv4 address."""
    return IPv4Address(f"10.0.0.{host}")


def v6(host: int) -> IPv6Address:
    """A host's IPv6 address."""
    return IPv6Address(f"fd00::{host}")


def addresses(source: Address, target: Address) -> dict[str, MatchValue]:
    """Fields of a packet's or a match's addresses."""
    if target.version == 6:
        return {"eth_type": 0x86DD, "ipv6_src": source, "ipv6_dst": target}
    return {"eth_type": 0x800, "nw_src": source, "nw_dst": target}


def load_balancer(group_id: int, proto: str, *, ipv6: bool) -> tuple[Flow, Group]:
    """A Service: its flow and its group, translated in the buckets."""
    family = addresses(v6(0), VIP6) if ipv6 else addresses(v4(0), VIP)
    del family["ipv6_src" if ipv6 else "nw_src"]
    l4: dict[str, MatchValue] = {f"{proto}_dst": 80}
    fields = match(
        **family, nw_proto={"tcp": 6, "udp": 17}[proto], **l4,
        ct_state="+trk+new", ct_mark=0,
    )  # fmt: skip
    buckets = tuple(
        Bucket(
            host,
            (
                SetField("reg1", host),
                Ct(
                    ZONE, commit=True, table=4,
                    nat=Nat("dst", v6(host) if ipv6 else v4(host), port_min=8080),
                    exec=(SetField("ct_mark", 1, 1),),
                ),
            ),
        )
        for host in SERVERS
    )  # fmt: skip
    return Flow(2, 100, fields, (ToGroup(group_id),)), Group(group_id, buckets=buckets)


def service_program() -> Program:
    """Established past all else, Services, a policy by conjunction, SNAT in a second zone."""
    flows = [Flow(table, 0, (), (end(200 + table),)) for table in range(7)]
    groups = []
    flows += [
        Flow(0, 10, match(eth_type=eth_type), (Ct(ZONE, table=1, nat=Nat()),))
        for eth_type in (0x800, 0x86DD)
    ]
    established = match(ct_state="+trk-new+est")
    flows += [
        Flow(1, 100, established, (SetField("reg0", 1),), goto=4),
        Flow(1, 50, match(ct_state="+trk+new"), (Resubmit(6), SetField("reg0", 2)), goto=2),
        Flow(6, 10, match(reg0=0), (SetField("reg7", 0xAB, 0xFF),)),
        Flow(2, 1, (), goto=3),
    ]
    for i, (proto, ipv6) in enumerate(
        [("tcp", False), ("udp", False), ("tcp", True), ("udp", True)]
    ):
        flow, group = load_balancer(1 + i, proto, ipv6=ipv6)
        flows.append(flow)
        groups.append(group)
    ip = {"eth_type": 0x800}
    flows += [
        # Clients may reach servers directly on port 53 by UDP; all else that is new is refused.
        *(Flow(3, 50, match(**ip, nw_src=v4(h)), (Conjunction(7, 1, 2),)) for h in CLIENTS),
        Flow(3, 50, match(**ip, nw_proto=17, udp_dst=53), (Conjunction(7, 2, 2),)),
        Flow(3, 50, match(conj_id=7, **ip), (Ct(ZONE, commit=True, table=4),)),
        # One client leaves through source NAT.
        Flow(
            3, 60, match(**ip, nw_proto=17, nw_src=v4(11), nw_dst=v4(99)),
            (Ct(ZONE, commit=True, table=5),),
        ),
        Flow(
            5, 10, match(**ip),
            (Ct(SNAT_ZONE, commit=True, nat=Nat("src", GATEWAY)), end(99)),
        ),
        Flow(4, 90, match(**ip, nw_dst=v4(99)), (end(98),)),
    ]  # fmt: skip
    for host in (*CLIENTS, *SERVERS):
        actions: tuple[Action, ...] = (
            set_field("eth_dst", f"02:00:00:00:00:{host}"),
            DecTtl(),
            end(host),
        )
        flows.append(Flow(4, 80, match(**ip, nw_dst=v4(host)), actions))
        flows.append(Flow(4, 80, match(eth_type=0x86DD, ipv6_dst=v6(host)), actions))
    return Program(tuple(flows), tuple(groups))


class Both:
    """A program on OVS and in the tracer, kept in step packet by packet."""

    def __init__(self, session: OpenFlowSocket, program: Program) -> None:
        self._session = session
        self._tracer = Tracer.of(program)
        self.conntrack = Conntrack()
        requests = [codec.encode_group(group, "add") for group in program.groups]
        requests += [codec.encode_flow(flow, "add") for flow in program.flows]
        answers = session.ask(
            codec.encode_set_config(0xFFFF, 1),
            codec.encode_set_async(packet_in=True, flow_removed=False, xid=2),
            codec.encode_packet_in_format(3),
            codec.encode_ct_flush(codec.CtFlush()),
            *requests,
        )
        assert not [one for one in answers if isinstance(one, ErrorMessage)], answers

    def send(self, values: Packet, tcp_flags: int = 2) -> Trace:
        """The trace that OVS agrees with: one of all that the tracer holds possible."""
        data = frame({**values, "tcp_flags": tcp_flags})
        self._session.send(codec.encode_packet_out(data, (Resubmit(0),), values["in_port"]))
        message = self._session.receive()
        assert isinstance(message, PacketIn), message
        real = (message.userdata, fields_of(message.data))
        possible = self._tracer.trace_all(values, self.conntrack)
        told = [[(one.userdata, seen(one.packet)) for one in trace.left] for trace in possible]
        assert [real] in told, (real, told, possible[0].text())
        trace = possible[told.index([real])]
        self.conntrack = trace.conntrack
        return trace


def seen(values: Packet) -> dict[str, int]:
    """Of a traced packet, what bytes can say."""
    names = ("eth_type", "eth_src", "eth_dst", "nw_proto", "nw_ttl", "nw_src", "nw_dst", "ipv6_src",
             "ipv6_dst", "tcp_src", "tcp_dst", "udp_src", "udp_dst")  # fmt: skip
    return {name: values[name] for name in names if name in values}


def request(host: int, proto: str, source: int, target: Address, l4_port: int) -> Packet:
    """A packet from a client."""
    l4: dict[str, MatchValue] = {f"{proto}_src": source, f"{proto}_dst": l4_port}
    return packet(
        in_port=1,
        eth_src=f"02:00:00:00:00:{host}",
        eth_dst="02:00:00:00:00:01",
        nw_ttl=64,
        nw_proto={"tcp": 6, "udp": 17}[proto],
        **addresses(v6(host) if target.version == 6 else v4(host), target),
        **l4,
    )


def answer(values: Packet) -> dict[str, int]:
    """What the receiver of a packet sends back."""
    swapped = dict(values)
    pairs = (("nw_src", "nw_dst"), ("ipv6_src", "ipv6_dst"), ("tcp_src", "tcp_dst"),
             ("udp_src", "udp_dst"), ("eth_src", "eth_dst"))  # fmt: skip
    for one, other in pairs:
        if one in values:
            swapped[one], swapped[other] = values[other], values[one]
    clean = {k: v for k, v in swapped.items() if not k.startswith(("ct_", "reg"))}
    return clean | {"in_port": 2, "nw_ttl": 64}


def test_random_connections_end_alike(ovs_bridge: OvsBridge) -> None:
    """300 packets of overlapping connections, requests and answers, in a fixed random order."""
    chance = random.Random(1)  # noqa: S311 (no secret, but the same each time)
    with ovs_bridge.session() as session:
        both = Both(session, service_program())
        delivered: list[Packet] = []
        ends = set()
        targets: list[Address] = [VIP, VIP6, v4(21), v4(22), v4(99), v6(23)]
        for _ in range(300):
            if delivered and chance.random() < 0.5:
                values: Packet = answer(chance.choice(delivered))
            else:
                values = request(
                    chance.choice(CLIENTS),
                    # TCP without answer is left out: OVS follows TCP's own states.
                    "udp",
                    chance.randrange(1000, 1006),
                    chance.choice(targets),
                    chance.choice([80, 80, 53, 8080]),
                )
            trace = both.send(values)
            ends.add(trace.left[0].userdata)
            if trace.left[0].userdata[0] < 100:
                delivered.append(trace.left[0].packet)
        assert ends >= {bytes([number]) for number in (*CLIENTS, 99, 203)}, "reached too little"
        assert len(ends & {bytes([host]) for host in SERVERS}) >= 2


def test_a_tcp_connection_ends_alike(ovs_bridge: OvsBridge) -> None:
    """SYN, SYN+ACK, ACK through a Service: one endpoint, seen as the Service's address."""
    with ovs_bridge.session() as session:
        both = Both(session, service_program())
        targets: tuple[Address, ...] = (VIP, VIP6)
        for target in targets:
            first = both.send(request(11, "tcp", 1234, target, 80))
            endpoint = first.left[0].userdata
            assert endpoint in {bytes([host]) for host in SERVERS}
            reply = answer(first.left[0].packet)
            back = both.send(reply, tcp_flags=0x12)
            assert back.left[0].userdata == bytes([11])
            acknowledgement = both.send(request(11, "tcp", 1234, target, 80), tcp_flags=0x10)
            assert acknowledgement.left[0].userdata == endpoint


def test_static_actions_end_alike(ovs_bridge: OvsBridge) -> None:
    """Output to the ingress port, IN_PORT, groups of type all, TTL: as ofproto/trace says."""
    group = Group(1, "all", (Bucket(1, (SetField("reg0", 9), Output(2))), Bucket(2, (Output(3),))))
    flows = (
        Flow(0, 9, match(in_port=1), (Output(1), Output(2))),
        Flow(0, 9, match(in_port=2), (Output(0xFFFFFFF8), Output(3))),
        Flow(0, 9, match(in_port=3), (SetField("reg0", 2), ToGroup(1), Resubmit(1))),
        Flow(1, 9, match(reg0=2), (Output(4),)),
        Flow(0, 9, match(in_port=4, eth_type=0x800), (DecTtl(), Output(1))),
    )
    tracer = Tracer(flows, [group])
    with ovs_bridge.session() as session:
        assert not session.ask(
            codec.encode_group(group, "add"), *(codec.encode_flow(flow, "add") for flow in flows)
        )
    shown = re.findall(r"p\d+ (\d+)/(\d+):", ovs_bridge.ovs.appctl("dpif/show"))
    ofports = {int(datapath_port): int(ofport) for ofport, datapath_port in shown}
    for in_port, ttl in ((1, 64), (2, 64), (3, 64), (4, 64), (4, 1)):
        values = packet(in_port=in_port, eth_type=0x800, nw_ttl=ttl)
        text = ovs_bridge.trace(f"in_port={in_port},ip,nw_ttl={ttl}")
        last = text.strip().splitlines()[-1].removeprefix("Datapath actions: ")
        outputs = [int(word) for word in last.replace(")", "").split(",") if word.isdigit()]
        assert list(tracer.trace(values).ports) == [ofports[port] for port in outputs], text
