"""What FakeSwitch adds to OVS: it says what would kill OVS, and it can be driven over TCP."""

import asyncio

import pytest

from dunlin.openflow import codec
from dunlin.openflow.fake import BundleRefused, Crashed, FakeSwitch, FlowMod, GroupMod, Refused
from dunlin.openflow.fake_session import FakeOpenFlowSwitch
from dunlin.openflow.flow import Bucket, Flow, Group, Output, ToGroup
from dunlin.openflow.messages import (
    BarrierReply,
    ErrorMessage,
    FeaturesReply,
    FlowRemoved,
    Hello,
    Message,
    PacketIn,
    Port,
    PortStatus,
)

GROUP = Group(1, buckets=(Bucket(1, (Output(1),)),))
TO_GROUP = Flow(0, 1, (), (ToGroup(1),))
BAD = FlowMod("add", Flow(0, 2, (), (ToGroup(404),)))


def switch_with_group() -> FakeSwitch:
    """One group and a flow that names it."""
    switch = FakeSwitch()
    switch.apply(GroupMod("add", GROUP))
    switch.apply(FlowMod("add", TO_GROUP))
    return switch


def test_bundle_that_would_kill_ovs() -> None:
    """A refused bundle that deleted a group before its flows is a crash; in the other order not."""
    delete_group, delete_flow = GroupMod("delete", GROUP), FlowMod("delete_strict", TO_GROUP)
    with pytest.raises(Crashed, match="group 0x1 deleted before"):
        switch_with_group().apply_bundle([delete_group, BAD])
    with pytest.raises(Crashed):
        switch_with_group().apply_bundle([GroupMod("delete", Group(0xFFFFFFFC, "all")), BAD])
    with pytest.raises(BundleRefused, match="message 2 of the bundle") as refused:
        switch_with_group().apply_bundle([delete_flow, delete_group, BAD])
    assert refused.value.index == 2
    switch = switch_with_group()
    switch.apply_bundle([delete_group])
    assert (switch.flows, switch.groups) == ({}, {})


def test_a_refusal_changes_nothing() -> None:
    """The flow that is refused is not there, and does not count."""
    switch = FakeSwitch()
    with pytest.raises(Refused, match="OFPBAC_BAD_OUT_GROUP"):
        switch.apply(BAD)
    assert (switch.flows, switch.applied) == ({}, 0)


class Controller:
    """A controller's side of one TCP session."""

    def __init__(self) -> None:
        self.streams: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
        self.streams = asyncio.Queue()
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def accept(self) -> None:
        """Wait for a switch and greet it."""
        self.reader, self.writer = await asyncio.wait_for(self.streams.get(), 5)
        self.writer.write(codec.encode_hello(1))
        assert isinstance(await self.next(), Hello)

    async def next(self) -> Message:
        """The next message. Raises IncompleteReadError at the session's end."""
        head = await asyncio.wait_for(self.reader.readexactly(8), 5)
        return codec.decode(
            head + await self.reader.readexactly(codec.parse_header(head).length - 8)
        )

    async def read_all(self) -> None:
        """Until the session ends, which raises IncompleteReadError."""
        while True:
            await self.next()


async def test_session_over_tcp() -> None:
    """It connects, answers, announces, crashes, comes back empty, and hangs on request."""
    fake, controller = FakeOpenFlowSwitch(FakeSwitch(dpid=7)), Controller()

    async def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await controller.streams.put((reader, writer))

    server = await asyncio.start_server(accepted, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    running = asyncio.create_task(fake.connect("127.0.0.1", port))
    await controller.accept()
    write = controller.writer.write

    write(codec.encode_features_request(2))
    features = await controller.next()
    assert isinstance(features, FeaturesReply)
    assert features.dpid == 7

    write(codec.encode_group(GROUP, "add") + codec.encode_flow(TO_GROUP, "add", flags=1))
    write(codec.encode_group(GROUP, "delete"))
    removed = await controller.next()
    assert isinstance(removed, FlowRemoved)
    assert (removed.reason, removed.flow.key) == ("group_delete", TO_GROUP.key)

    fake.add_port(Port(5, "pod5", 0x020000000005, 0, 0))
    status = await controller.next()
    assert isinstance(status, PortStatus)
    assert (status.reason, status.port) == ("add", fake.switch.ports[5])
    fake.packet_in(PacketIn(0, "apply_action", 3, 9, 0, b"packet"))
    packet = await controller.next()
    assert isinstance(packet, PacketIn)
    assert (packet.table, packet.cookie, packet.data) == (3, 9, b"packet")

    write(codec.encode_flow(TO_GROUP, "add", 9))
    error = await controller.next()
    assert isinstance(error, ErrorMessage)
    assert (error.xid, error.name) == (9, "OFPBAC_BAD_OUT_GROUP")

    fake.switch.apply(GroupMod("add", GROUP))
    fake.switch.apply(FlowMod("add", TO_GROUP))
    messages = (codec.encode_group(GROUP, "delete"), codec.encode_flow(BAD.flow, "add"))
    write(codec.encode_bundle_open(1, 1))
    write(b"".join(codec.encode_bundle_add(1, one, 2) for one in messages))
    write(codec.encode_bundle_commit(1, 3))
    with pytest.raises(asyncio.IncompleteReadError):
        await controller.read_all()
    await asyncio.wait_for(running, 5)
    assert len(fake.crashes) == 1
    assert fake.switch.flows == {}

    running = asyncio.create_task(fake.connect("127.0.0.1", port))
    await controller.accept()
    fake.stuck = True
    controller.writer.write(codec.encode_barrier_request(4))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(controller.reader.readexactly(8), 0.05)
    fake.stuck = False
    controller.writer.write(codec.encode_barrier_request(5))
    assert await controller.next() == BarrierReply(5)
    controller.writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await asyncio.wait_for(running, 5)
    server.close()
    # From Python 3.12 on the server waits for its connections too.
    controller.writer.close()
    await server.wait_closed()
