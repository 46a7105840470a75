"""Hostile, slow and silent peers: each costs its own session and nothing else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dunlin.openflow import codec, messages, wire_switch
from dunlin_flowctl.adapters.session import Refusal
from tests.unit.flowctl.harness import Cluster, Flowctl, until

FEATURES_REPLY, MULTIPART = 6, 18


@contextlib.asynccontextmanager
async def flowctl(**options: Any) -> AsyncIterator[Flowctl]:
    """One replica on an empty bus."""
    replica = await Flowctl(await Cluster().start(), **options).start()
    try:
        yield replica
    finally:
        await replica.stop()


class Peer:
    """Somebody who connects to the OpenFlow port."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, replica: Flowctl) -> "Peer":
        """Connect, and say nothing."""
        return cls(*await asyncio.open_connection("127.0.0.1", replica.port))

    async def hello(self, dpid: int) -> "Peer":
        """Shake hands as a switch with this dpid."""
        self.writer.write(codec.encode_hello(1))
        while True:
            message = await self.read()
            if message[1] == 5:
                body = dpid.to_bytes(8, "big") + bytes(16)
                head = bytes([codec.VERSION, FEATURES_REPLY, 0, 32]) + message[4:8]
                self.writer.write(head + body)
                return self

    async def read(self) -> bytes:
        """One message, undecoded."""
        head = await self.reader.readexactly(8)
        return head + await self.reader.readexactly(int.from_bytes(head[2:4], "big") - 8)

    async def gone(self) -> bool:
        """Read until the other side hangs up."""
        async with asyncio.timeout(10):
            try:
                while await self.reader.read(65536):
                    pass
            except ConnectionError:
                pass
        self.writer.close()
        return True


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "malformed"),
        (bytes(64), "malformed"),
        (b"\xff" * 64, "malformed"),
        (b"\x06\x00\x00\x04\x00\x00\x00\x01" + bytes(8), "malformed"),
        (b"\x01\x00\x00\x08\x00\x00\x00\x01", "version"),
        (codec.encode_echo_request(1), "no_hello"),
        (
            codec.encode_hello(1) + b"\x06\x13\x00\x10\x00\x00\x00\x02\x00\x01\x00\x00" + bytes(4),
            "",
        ),
    ],
)
async def test_garbage_closes_only_that_session(data: bytes, reason: str) -> None:
    """Bytes that are no handshake: closed, counted by reason; the next peer is served."""
    async with flowctl() as replica:
        bad = await Peer.connect(replica)
        bad.writer.write(data)
        if reason:
            assert await bad.gone()
            assert replica.sample("dunlin_openflow_errors_total", reason=reason) == 1
        good = await (await Peer.connect(replica)).hello(7)
        await until(lambda: 7 in replica.handles.sessions, "the good one is served")
        assert replica.shell.count_switches()["unknown"] == 1
        for peer in (bad, good):
            peer.writer.close()


@given(st.lists(st.binary(max_size=200), max_size=5))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
async def test_no_bytes_stop_the_server(pieces: list[bytes]) -> None:
    """Whatever a peer says after hello, the next switch shakes hands."""
    async with flowctl() as replica:
        bad = await Peer.connect(replica)
        bad.writer.write(codec.encode_hello(1) + b"".join(pieces))
        bad.writer.write_eof()
        assert await bad.gone()
        good = await (await Peer.connect(replica)).hello(7)
        await until(lambda: 7 in replica.handles.sessions, "served")
        good.writer.close()


async def test_a_silent_peer_is_closed() -> None:
    """Who does not shake hands in time is closed."""
    async with flowctl(handshake_timeout_s=0.2) as replica:
        assert await (await Peer.connect(replica)).gone()
        assert replica.sample("dunlin_openflow_errors_total", reason="handshake_timeout") == 1


async def test_a_switch_that_does_not_answer_echoes_is_dead() -> None:
    """Three echo intervals of silence end a session; once in each of them it is asked, not more."""
    async with flowctl(echo_interval_s=0.1) as replica:
        peer = await (await Peer.connect(replica)).hello(7)
        asked = 0
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                asked += isinstance(codec.decode(await peer.read()), messages.EchoRequest)
        assert 1 <= asked <= 3
        peer.writer.close()
        await until(lambda: replica.sample("dunlin_openflow_errors_total", reason="dead") == 1)
        await until(lambda: not replica.handles.sessions)


async def test_a_switch_that_talks_all_the_time_is_spoken_to() -> None:
    """Who sends a long dump hears nothing else from us, and would take us for dead."""
    async with flowctl(echo_interval_s=0.1) as replica:
        peer = await (await Peer.connect(replica)).hello(7)
        talking = asyncio.create_task(_talk(peer))
        try:
            async with asyncio.timeout(10):
                while not isinstance(codec.decode(await peer.read()), messages.EchoRequest):
                    pass
        finally:
            talking.cancel()
            await asyncio.wait({talking})
        peer.writer.close()


async def _talk(peer: Peer) -> None:
    """Something that needs no answer, and no silence between: as parts of a dump would be."""
    while True:
        peer.writer.write(codec.encode_echo_reply(0xFFFF, b""))
        await peer.writer.drain()
        await asyncio.sleep(0.005)


async def test_echoes_are_answered() -> None:
    """An echo request comes back with its xid and payload."""
    async with flowctl() as replica:
        peer = await (await Peer.connect(replica)).hello(7)
        peer.writer.write(codec.encode_echo_request(99, b"payload"))
        async with asyncio.timeout(5):
            while not isinstance(reply := codec.decode(await peer.read()), messages.EchoReply):
                pass
        assert (reply.xid, reply.payload) == (99, b"payload")
        peer.writer.close()


async def test_questions_asked_together() -> None:
    """One write; each gets its own answer, in whatever order they come; an error refuses all."""
    async with flowctl() as replica:
        peer = await (await Peer.connect(replica)).hello(7)
        await until(lambda: 7 in replica.handles.sessions, "connected")
        session = replica.handles.sessions[7]
        questions = [
            (codec.encode_aggregate_request(0, table=n), messages.AggregateStats) for n in (1, 2)
        ]
        for refuse in (False, True):
            asked = asyncio.create_task(session.ask(*questions))
            async with asyncio.timeout(10):
                while (first := await peer.read())[1] != MULTIPART or first[16] != 1:
                    pass
                second = await peer.read()
            assert second[16] == 2
            answers = [_aggregate(second, 22), _error(first) if refuse else _aggregate(first, 11)]
            peer.writer.write(b"".join(answers))
            if refuse:
                with pytest.raises(Refusal):
                    await asked
            else:
                assert [[part.flows for part in parts] for parts in await asked] == [[11], [22]]
        assert not session.closed
        peer.writer.close()


def _aggregate(request: bytes, flows: int) -> bytes:
    xid = int.from_bytes(request[4:8], "big")
    return wire_switch.multipart(xid, 2, [wire_switch.aggregate(flows)])[0]


def _error(request: bytes) -> bytes:
    body = b"\0\1\0\1" + request[:64]
    return bytes([codec.VERSION, 1]) + (8 + len(body)).to_bytes(2, "big") + request[4:8] + body


async def test_too_many_strangers_are_turned_away() -> None:
    """Switches that no intent names are limited; the newest goes, the others stay."""
    async with flowctl(unknown_max=2) as replica:
        await until(lambda: replica.handles.caught_up, "intents read")
        peers = [await (await Peer.connect(replica)).hello(dpid) for dpid in (1, 2)]
        await until(lambda: len(replica.handles.sessions) == 2, "two strangers")
        third = await (await Peer.connect(replica)).hello(3)
        assert await third.gone()
        assert set(replica.handles.sessions) == {1, 2}
        for peer in peers:
            peer.writer.close()


async def test_too_many_handshakes_are_turned_away() -> None:
    """Connections that have not said who they are yet are limited."""
    async with flowctl(handshaking_max=1) as replica:
        first = await Peer.connect(replica)
        await first.read()
        second = await Peer.connect(replica)
        assert await second.gone()
        assert replica.sample("dunlin_openflow_errors_total", reason="too_many") == 1
        first.writer.close()


async def test_the_newer_session_of_a_dpid_replaces_the_older() -> None:
    """A switch that reconnects before its old session was noticed to be dead is served."""
    async with flowctl() as replica:
        first = await (await Peer.connect(replica)).hello(7)
        await until(lambda: 7 in replica.handles.sessions, "first")
        older = replica.handles.sessions[7]
        second = await (await Peer.connect(replica)).hello(7)
        assert await first.gone()
        await until(lambda: replica.handles.sessions.get(7) not in {None, older}, "second")
        second.writer.close()
