"""SCTP Services on a real switch: translated where Open vSwitch can (3.2), refused where not."""

import re
import struct
import time
from ipaddress import IPv4Address

import pytest

from dunlin.events.facts import Protocol, ServicePort
from dunlin.openflow import codec
from dunlin.openflow.messages import ErrorMessage, PacketIn
from dunlin.pipeline.layout import REJECT_USERDATA, Zone
from tests.contract.pipeline.test_spread_ovs import version
from tests.fixtures.frames import SCTP_INIT, sctp
from tests.fixtures.ovs_dummy import DEADLINE_S, OpenFlowSocket, OvsBridge
from tests.packets.world import CLUSTER_IP, at, endpoints, pod_mac, program_of, service

pytestmark = pytest.mark.ovs

POD, CLIENT, SERVICE_PORT, TARGET_PORT, CLIENT_PORT = (
    "10.244.1.11", "10.244.1.12", 80, 8080, 40000,
)  # fmt: skip
INIT = SCTP_INIT
INIT_ACK = bytes.fromhex("02000014") + struct.pack("!IIHHI", 9, 65536, 1, 1, 1)


def packet_of(
    pod: int, source: str, target: str, ports: tuple[int, int], tag: int, chunk: bytes
) -> bytes:
    """An SCTP packet of a Pod of n1, with right checksums."""
    body = sctp(*ports, tag=tag, chunk=chunk)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 132, 0)
    head += IPv4Address(source).packed + IPv4Address(target).packed
    total = sum(struct.unpack("!10H", head))
    total = (total & 0xFFFF) + (total >> 16)
    head = head[:10] + struct.pack("!H", ~total & 0xFFFF) + head[12:]
    macs = bytes.fromhex("02000000ff01" + str(pod_mac(pod)).replace(":", ""))
    return (macs + b"\x08\x00" + head + body).ljust(60, b"\0")


def sent_out(bridge: OvsBridge, pod: int) -> list[tuple[str, str, int, int]]:
    """(source, destination, source port, destination port) of what came out at a Pod's port."""
    data = bridge.ovs.pcap(f"{bridge.name}-{pod}").read_bytes()[24:]
    found = []
    while data:
        (length,) = struct.unpack_from("<I", data, 8)
        frame, data = data[16 : 16 + length], data[16 + length :]
        source, target = IPv4Address(frame[26:30]), IPv4Address(frame[30:34])
        found.append((str(source), str(target), *struct.unpack_from("!HH", frame, 34)))
    return found


def a_switch(bridge: OvsBridge, ovs_version: str) -> OpenFlowSocket:
    """n1 with the SCTP Service default/web of Pod p11, as planned for that version of OVS."""
    for pod in (1, 2):
        bridge.add_written_port(f"{bridge.name}-{pod}", 10 + pod)
    ports = (ServicePort(name="http", protocol=Protocol.SCTP, port=SERVICE_PORT),)
    facts = (service(ports=ports), endpoints(at(1, 1), protocol=Protocol.SCTP))
    program = program_of(*facts, ovs_version=ovs_version)
    messages = [codec.encode_group(group, "add") for group in program.groups]
    messages += [codec.encode_flow(flow, "add") for flow in program.flows]
    bridge.ovs.appctl("dpctl/flush-conntrack")
    session = OpenFlowSocket(bridge.management)
    errors = [a for a in session.ask(*messages) if isinstance(a, ErrorMessage)]
    assert not errors, errors
    return session


def eventually_out(bridge: OvsBridge, pod: int) -> tuple[str, str, int, int]:
    """The one packet that came out."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := sent_out(bridge, pod)):
        assert time.monotonic() < deadline, bridge.ovs.appctl("dpctl/dump-flows", "-m")
        time.sleep(0.01)
    (one,) = found
    return one


def test_an_association_through_a_service(bridge: OvsBridge) -> None:
    """INIT reaches the endpoint's port, INIT ACK comes back from the Service's."""
    if version(bridge) < (3, 2):
        pytest.skip("this Open vSwitch does not track SCTP ports; DUNLIN_OVS_PREFIX names another")
    session = a_switch(bridge, "3.2.0")
    try:
        init = packet_of(2, CLIENT, CLUSTER_IP, (CLIENT_PORT, SERVICE_PORT), 0, INIT)
        bridge.ovs.appctl("netdev-dummy/receive", f"{bridge.name}-2", init.hex())
        assert eventually_out(bridge, 1) == (CLIENT, POD, CLIENT_PORT, TARGET_PORT)
        ack = packet_of(1, POD, CLIENT, (TARGET_PORT, CLIENT_PORT), 7, INIT_ACK)
        bridge.ovs.appctl("netdev-dummy/receive", f"{bridge.name}-1", ack.hex())
        assert eventually_out(bridge, 2) == (CLUSTER_IP, CLIENT, SERVICE_PORT, CLIENT_PORT)
    finally:
        session.close()


def test_refused_where_ports_are_not_tracked(bridge: OvsBridge) -> None:
    """Planned for 3.1 the packet goes to the controller, to be refused; nothing is committed."""
    session = a_switch(bridge, "3.1.0")
    try:
        session.ask(
            codec.encode_set_config(0xFFFF, 1),
            codec.encode_set_async(packet_in=True, flow_removed=False, xid=2),
            codec.encode_packet_in_format(3),
        )
        init = packet_of(2, CLIENT, CLUSTER_IP, (CLIENT_PORT, SERVICE_PORT), 0, INIT)
        bridge.ovs.appctl("netdev-dummy/receive", f"{bridge.name}-2", init.hex())
        told = session.receive()
        assert isinstance(told, PacketIn)
        assert told.userdata == REJECT_USERDATA
        assert not sent_out(bridge, 1)
        entries = bridge.ovs.appctl("dpctl/dump-conntrack", f"zone={int(Zone.MAIN)}")
        assert not re.search("sctp", entries)
    finally:
        session.close()
