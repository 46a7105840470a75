"""
Two nodes of a generated cluster as real Open vSwitch bridges, and real packets through them.

Both bridges are of one userspace datapath: conntrack is emptied before a packet that left one node
comes to the other.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from ipaddress import ip_address

import msgspec

from dunlin.events.intents import AnyIntent, ServiceEndpoint
from dunlin.openflow import codec
from dunlin.openflow.flow import Program
from dunlin.openflow.messages import ErrorMessage
from dunlin.openflow.packet import packet
from dunlin.pipeline import compile_intent, switch_context
from dunlin.pipeline.layout import HAIRPIN_V4, HAIRPIN_V6
from tests.fixtures import cluster as nodes
from tests.fixtures.frames import fields_of, frame
from tests.fixtures.ovs_dummy import DEADLINE_S, ControlSocket, OvsBridge, OvsDummy
from tests.scenario.policy.oracle import Cluster, Packet, Pod, pod_with
from tests.scenario.policy.walk import NODES, Walker, endpoint, mac_number

PODS = (10, 11)
"""OpenFlow ports of Pods, as `generate.pods` numbers them."""
PORTS = (nodes.GATEWAY_PORT, nodes.UPLINK_PORT, *PODS)
SERVICE = ("10.96.0.1", "fd96::1")
FIRST_PORT = 30_000
"""Source port of the first packet: it tells them apart."""
AT_ONCE = 30
"""Packets at one port before they are waited for."""
ARP_TYPE = b"\x08\x06"
ARP = "ffffffffffff{mac:012x}08060001080006040001{mac:012x}{ip:08x}000000000000{target:08x}"

Seen = tuple[int, int, int, int]
"""Source, destination, protocol, source port (0: none)."""


class RealSwitches:
    """`load` a cluster, then ask which `arrive`."""

    def __init__(self, ovs: OvsDummy, bridges: dict[int, OvsBridge]) -> None:
        self._ovs = ovs
        self._bridges = bridges
        self._offsets: dict[str, int] = {}
        self._cluster = Cluster()
        self._endpoint: Pod | None = None
        self._control = ControlSocket(ovs)
        for bridge in bridges.values():
            for port in PORTS:
                bridge.add_written_port(self._name(bridge, port), port)

    def close(self) -> None:
        """No more questions."""
        self._control.close()

    def load(
        self, cluster: Cluster, policy: Iterable[AnyIntent], service: Pod | None = None
    ) -> None:
        """The flows of both nodes, and nothing else; `service`: the one endpoint of SERVICE."""
        wanted = list(policy)
        self._cluster = cluster
        self._endpoint = service
        if service is not None:
            there = tuple(ServiceEndpoint(ip=ip_address(ip), port=8080) for ip in service.ips)
            wanted.append(msgspec.structs.replace(nodes.service(1), endpoints=there))
        for number, bridge in self._bridges.items():
            switch = nodes.switch(number)
            context = switch_context(switch)
            ends = [endpoint(pod) for pod in cluster.pods if pod.node == switch.scope]
            routes = [nodes.route(other) for other in NODES]
            mine = [i for i in wanted if i.scope in ("all", switch.scope)]
            program = Program()
            for intent in (switch, *ends, *routes, *mine):
                program += compile_intent(intent, context)
            self._write(bridge, program)

    def _write(self, bridge: OvsBridge, program: Program) -> None:
        bridge.ofctl("del-flows")
        bridge.ofctl("del-groups")
        with bridge.session() as session:
            messages = [codec.encode_group(group, "add") for group in program.groups]
            messages += [codec.encode_flow(flow, "add") for flow in program.flows]
            errors = [a for a in session.ask(*messages) if isinstance(a, ErrorMessage)]
            assert not errors, errors
        self._control.ask("revalidator/purge")

    # --- packets ----------------------------------------------------------------------------------

    def arrive(self, packets: list[Packet]) -> list[bool]:
        """Of the first packets of new connections to Pods: which arrive."""
        frames = {number: self._frame(number, sent) for number, sent in enumerate(packets)}
        self._control.ask("dpctl/flush-conntrack")
        got: set[Seen] = set()
        outside: dict[int, list[bytes]] = {number: [] for number in NODES}
        own: dict[int, list[bytes]] = {number: [] for number in NODES}
        for number, sent in enumerate(packets):
            src, dst = pod_with(self._cluster, sent.src), self._to(sent.dst)
            if src is None:
                node = int(dst.node[1:])
                here = ip_address(sent.src) in nodes.switch(node).gateway_ips
                (own if here else outside)[node].append(frames[number])
        for pod in self._cluster.pods:
            mine = [frames[n] for n, sent in enumerate(packets) if sent.src in pod.ips]
            self._inject(int(pod.node[1:]), pod.number, mine)
        between = self._collect(got)
        self._control.ask("dpctl/flush-conntrack")
        for number in NODES:
            self._inject(number, nodes.GATEWAY_PORT, own[number])
            self._inject(number, nodes.UPLINK_PORT, [*outside[number], *between[number]])
        self._collect(got)
        return [self._wanted(s, frames[n]) in got for n, s in enumerate(packets)]

    def _to(self, ip: str) -> Pod:
        """The Pod that a packet to this address is for."""
        found = self._endpoint if ip in SERVICE else pod_with(self._cluster, ip)
        assert found is not None, ip
        return found

    def _wanted(self, sent: Packet, data: bytes) -> Seen:
        """How it comes out: to the endpoint; from the hairpin's address, if that is who sent it."""
        src, dst, proto, port = seen_of(data)
        if sent.dst in SERVICE:
            dst = int(ip_address(self._to(sent.dst).ips[sent.dst == SERVICE[1]]))
            src = int((HAIRPIN_V4, HAIRPIN_V6)[sent.dst == SERVICE[1]]) if src == dst else src
        return src, dst, proto, port

    def _frame(self, number: int, sent: Packet) -> bytes:
        src, dst = pod_with(self._cluster, sent.src), self._to(sent.dst)
        fields = Walker._fields(sent, FIRST_PORT + number)
        if src is None:
            router = nodes.switch(int(dst.node[1:])).router_mac
            return frame(fields | packet(eth_dst=router))
        return frame({**fields, "eth_src": mac_number(src)})

    def _inject(self, number: int, port: int, frames: list[bytes]) -> None:
        bridge = self._bridges[number]
        # Before Open vSwitch 3.2 two associations of two addresses are one: the second would be
        # judged as a packet of the first, its other direction as a reply.
        alone = [one for one in frames if proto_of(one) == 132]
        others = [one for one in frames if proto_of(one) != 132]
        groups = [others[at : at + AT_ONCE] for at in range(0, len(others), AT_ONCE)]
        for group in (*groups, *([one] for one in alone)):
            if group and proto_of(group[0]) == 132:
                self._control.ask("dpctl/flush-conntrack")
            if group:
                texts = [one.hex() for one in group]
                self._control.ask("netdev-dummy/receive", self._name(bridge, port), *texts)
                self._settled(len(texts))

    def _settled(self, packets: int = 0) -> None:
        """
        Every packet so far is through.

        The datapath takes one packet of each port in one turn. So as many questions, and one more,
        at one port have their answers later than so many packets at another; and what this thread
        is asked then it hears when that turn is over.
        """
        pod = self._cluster.pods[0]
        name = self._name(self._bridges[int(pod.node[1:])], pod.number)
        before = self._end(name)
        questions = [self._question(pod)] * (packets + 1)
        self._control.ask("netdev-dummy/receive", name, *questions)
        deadline = time.monotonic() + DEADLINE_S
        while self._answers(name, before) < len(questions):
            assert time.monotonic() < deadline, f"no ARP reply on {name}"
            time.sleep(0.001)
        self._control.ask("version")

    def _answers(self, name: str, since: int) -> int:
        return sum(data[12:14] == ARP_TYPE for data, _ in self._frames(name, since))

    @staticmethod
    def _question(pod: Pod) -> str:
        """ARP for the gateway, from a Pod."""
        ip = packet(nw_src=ip_address(pod.ips[0]))["nw_src"]
        return ARP.format(mac=mac_number(pod), ip=ip, target=(ip & ~0xFF) | 1)

    def _collect(self, got: set[Seen]) -> dict[int, list[bytes]]:
        """What came out at Pods goes into `got`; what left a node is given back, by where to."""
        self._settled()
        left: dict[int, list[bytes]] = {number: [] for number in NODES}
        routers = {nodes.switch(n).router_mac.replace(":", ""): n for n in NODES}
        for bridge in self._bridges.values():
            for port in PORTS:
                for data in self._new_frames(self._name(bridge, port)):
                    if data[12:14] == ARP_TYPE:
                        continue
                    if port in PODS:
                        got.add(seen_of(data))
                    elif port == nodes.UPLINK_PORT:
                        left[routers[data[:6].hex()]].append(data)
        return left

    # --- files ------------------------------------------------------------------------------------

    @staticmethod
    def _name(bridge: OvsBridge, port: int) -> str:
        return f"{bridge.name}-{port}"

    def _end(self, name: str) -> int:
        """Behind the last whole frame: the file's size is seen in the middle of one, too."""
        start = self._offsets.get(name, 24)
        return max((behind for _, behind in self._frames(name, start)), default=start)

    def _frames(self, name: str, since: int) -> Iterator[tuple[bytes, int]]:
        """Frames of a file from a place in it, each with the place behind it."""
        with self._ovs.pcap(name).open("rb") as file:
            file.seek(since)
            data = file.read()
        at = 0
        while at + 16 <= len(data):
            (length,) = struct.unpack_from("<I", data, at + 8)
            if at + 16 + length > len(data):
                return
            yield data[at + 16 : at + 16 + length], since + at + 16 + length
            at += 16 + length

    def _new_frames(self, name: str) -> Iterator[bytes]:
        for data, behind in self._frames(name, self._offsets.get(name, 24)):
            self._offsets[name] = behind
            yield data


def proto_of(data: bytes) -> int:
    """The IP protocol of a frame."""
    return data[23] if data[12:14] == b"\x08\x00" else data[20]


def seen_of(data: bytes) -> Seen:
    """What tells a packet from the others."""
    fields = fields_of(data)
    version = "nw" if "nw_src" in fields else "ipv6"
    proto = proto_of(data)
    at = 34 if version == "nw" else 54
    port = int.from_bytes(data[at : at + 2], "big") if proto in (6, 17, 132) else 0
    return fields[f"{version}_src"], fields[f"{version}_dst"], proto, port


@contextmanager
def real_switches(ovs: OvsDummy) -> Iterator[RealSwitches]:
    """Two bridges until the context ends."""
    with ExitStack() as stack:
        bridges = {n: stack.enter_context(ovs.bridge()) for n in NODES}
        yield stack.enter_context(closing(RealSwitches(ovs, bridges)))
