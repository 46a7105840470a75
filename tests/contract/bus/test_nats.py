"""What only a real server can do to a reader or a publisher."""

import asyncio
import inspect
import os
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from dunlin import subjects
from dunlin.bus.base import BusUnavailable, Message
from dunlin.bus.nats import NatsBus
from dunlin.bus.nats_api import LEASES_PREFIX, LEASES_STREAM
from dunlin.bus.nats_client import FastClient, Options
from dunlin.bus.nats_follow import Session
from dunlin.bus.nats_leases import NatsLeases, key_of
from dunlin.bus.nats_server import NatsServer
from tests.fixtures.following import Reader
from tests.fixtures.nats import Given

pytestmark = pytest.mark.nats
FACTS = subjects.FACTS_STREAM


@pytest.fixture
def server(nats_server: NatsServer | Given) -> NatsServer:
    """A server that this test may kill."""
    if isinstance(nats_server, Given):
        pytest.skip("a server given by NATS_URL is not ours to kill")
    return nats_server


@pytest.fixture
async def bus(server: NatsServer) -> AsyncIterator[NatsBus]:
    """One connection with streams."""
    connection = await NatsBus.connect(
        Options((server.url,), timeout_s=5.0, heartbeat_s=0.2), wait_s=10
    )
    await connection.ensure_streams()
    yield connection
    await connection.close()


def message(index: int) -> Message:
    """The index-th of many different subjects."""
    return Message(subjects.fact("pod", "shop", f"p{index}"), b"%d" % index, msg_id=f"m{index}")


@pytest.mark.parametrize("name", ["_process_msg", "_process_err", "request"])
def test_the_override_fits_nats_py(name: str) -> None:
    """nats-py still calls it with what FastClient takes, and knows what it sets for nkeys."""
    theirs, ours = (
        list(inspect.signature(getattr(c, name)).parameters) for c in (Client, FastClient)
    )
    assert ours in (theirs, ["self", "args", "options"])
    assert {"_public_nkey", "_user_jwt_cb"} <= vars(Client()).keys()


async def test_a_deleted_consumer_is_replaced(bus: NatsBus) -> None:
    """A reader whose consumer is deleted on the server goes on without a gap or a repetition."""
    reader = Reader(bus.follow(FACTS))
    await bus.publish(message(1))
    await reader.until(lambda r: r.seqs == [1])
    names = (await bus.api.call(f"CONSUMER.NAMES.{FACTS}"))["consumers"]
    for name in names:
        await bus.api.call(f"CONSUMER.DELETE.{FACTS}.{name}")
    await bus.publish_many([message(i) for i in range(2, 8)])
    await reader.until(lambda r: r.seqs[-1:] == [7])
    assert reader.seqs == list(range(1, 8))


async def test_a_hole_is_noticed(bus: NatsBus, monkeypatch: pytest.MonkeyPatch) -> None:
    """A delivery that never arrives is asked for again before anything after it is handed out."""
    take, dropped = Session.take, []

    def leaky(
        self: Session, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        if data in (b"3", b"9") and data not in dropped:
            dropped.append(data)
        else:
            take(self, subject, reply, data, headers)

    monkeypatch.setattr(Session, "take", leaky)
    reader = Reader(bus.follow(FACTS))
    await bus.publish_many([message(i) for i in range(1, 10)])
    await reader.until(lambda r: r.seqs[-1:] == [9])
    assert reader.seqs == list(range(1, 10))
    assert dropped == [b"3", b"9"]


async def test_a_frozen_server(bus: NatsBus, server: NatsServer) -> None:
    """A server that stops answering without closing the connection costs nothing but time."""
    reader = Reader(bus.follow(FACTS))
    await bus.publish(message(1))
    await reader.until(lambda r: r.seqs == [1])
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    await asyncio.to_thread(os.waitid, os.P_PID, server.process.pid, os.WSTOPPED)
    try:
        with pytest.raises(BusUnavailable):
            await bus.publish(Message(subjects.fact("pod", "shop", "x"), b"2", msg_id="x"))
    finally:
        server.process.send_signal(signal.SIGCONT)
    await bus.publish(Message(subjects.fact("pod", "shop", "x"), b"2", msg_id="x"))
    await bus.publish(message(3))
    await reader.until(lambda r: r.data[-1:] == [b"3"])
    assert reader.seqs == [1, 2, 3]


async def test_killed_again_and_again(bus: NatsBus, server: NatsServer) -> None:
    """While the server dies and returns, every message is stored once and read once, in order."""
    reader = Reader(bus.follow(FACTS))
    total = 3000

    async def write() -> None:
        for start in range(0, total, 100):
            waiting = [message(i) for i in range(start, start + 100)]
            while waiting:
                results = await bus.publish_many(waiting)
                waiting = [
                    m
                    for m, result in zip(waiting, results, strict=True)
                    if not isinstance(result, int)
                ]

    writing = asyncio.create_task(write())
    for level in (500, 1500):
        await reader.until(lambda r, level=level: len(r.seqs) > level)  # type: ignore[misc]
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    await writing
    await reader.until(lambda r: len(set(r.data)) == total)
    assert reader.seqs == list(range(1, len(reader.seqs) + 1))
    assert len(reader.seqs) == total
    assert not any(batch.reset for batch in reader.batches)


async def test_away_for_too_long(server: NatsServer) -> None:
    """A reader that was away longer than tombstones are kept forgets all; a quiet one does not."""
    options = Options((server.url,), timeout_s=3.0, heartbeat_s=0.1, resync_after_s=0.6)
    bus = await NatsBus.connect(options, wait_s=10)
    await bus.ensure_streams()
    reader = Reader(bus.follow(FACTS))
    await bus.publish(message(1))
    await reader.until(lambda r: r.seqs == [1])
    quiet = asyncio.ensure_future(anext(reader.generator))
    # Seven heartbeats without news, then one trouble that is over at once.
    done, _pending = await asyncio.wait({quiet}, timeout=0.9)
    assert not done
    for name in (await bus.api.call(f"CONSUMER.NAMES.{FACTS}"))["consumers"]:
        await bus.api.call(f"CONSUMER.DELETE.{FACTS}.{name}")
    assert not (await asyncio.wait_for(quiet, 10)).reset
    await asyncio.to_thread(server.kill)
    away = asyncio.ensure_future(anext(reader.generator))
    await asyncio.wait({away}, timeout=1.0)
    await asyncio.to_thread(server.start)
    batch = await asyncio.wait_for(away, 10)
    assert batch.reset
    assert [record.seq for record in batch.records] == [1]
    await bus.close()


async def test_erased_data(bus: NatsBus, server: NatsServer) -> None:
    """When the server comes back with nothing, readers start anew, writers find streams."""
    reader = Reader(bus.follow(FACTS))
    await bus.publish_many([message(i) for i in range(5)])
    await reader.until(lambda r: len(r.seqs) == 5)
    leases = NatsLeases(bus)
    before = await leases.acquire("x", "a", ttl_s=30)
    await asyncio.to_thread(server.kill)
    server.erase()
    await asyncio.to_thread(server.start)
    assert await bus.publish(Message(subjects.fact("pod", "shop", "new"), b"new")) == 1
    await reader.until(lambda r: r.data[-1:] == [b"new"])
    assert [batch.reset for batch in reader.batches if batch.records][-1]
    after = await leases.acquire("x", "b", ttl_s=30)
    assert before is not None
    assert after is not None
    assert after.fencing > before.fencing


async def test_streams_as_designed(bus: NatsBus) -> None:
    """The streams keep files, history by subject, no time to live; leases are a bucket."""
    facts = (await bus.api.need_stream(FACTS)).config
    assert (facts["storage"], facts["max_msgs_per_subject"], facts["max_age"]) == ("file", 16, 0)
    assert facts["allow_direct"]
    assert not facts.get("allow_msg_ttl", False)
    state = (await bus.api.need_stream(subjects.STATE_STREAM)).config
    assert state["max_msgs_per_subject"] == 1
    bucket = (await bus.api.need_stream(LEASES_STREAM)).config
    assert bucket["subjects"] == [f"$KV.{subjects.LEASES_BUCKET}.>"]


async def test_a_changed_stream_is_brought_back(bus: NatsBus) -> None:
    """A stream whose settings differ is changed, not made anew: nothing stored is lost."""
    await bus.publish(message(1))
    config = (await bus.api.need_stream(FACTS)).config
    await bus.api.call(f"STREAM.UPDATE.{FACTS}", {**config, "max_msgs_per_subject": 3})
    await bus.ensure_streams()
    assert (await bus.api.need_stream(FACTS)).config["max_msgs_per_subject"] == 16
    assert await bus.last_seq(FACTS) == 1


async def test_no_server_at_all() -> None:
    """Connecting gives up in time, with an error that names the address, not the password."""
    options = Options(("nats://user:hunter2@127.0.0.1:1",))
    with pytest.raises(BusUnavailable, match=r"127\.0\.0\.1:1") as caught:
        await NatsBus.connect(options, wait_s=0.5)
    assert "hunter2" not in str(caught.value)


async def test_a_message_too_large(bus: NatsBus) -> None:
    """A payload beyond the server's limit is an error of that message alone."""
    large = Message(subjects.fact("pod", "shop", "large"), b"x" * 2_000_000)
    refused, stored = await bus.publish_many([large, message(1)])
    assert "too many" in str(refused)
    assert stored == 1


async def test_credentials(tmp_path: Path) -> None:
    """A wrong password never connects; the right one does."""
    server = NatsServer(
        tmp_path / "auth", config='authorization: {user: "dunlin", password: "s3cret"}\n'
    )
    server.start()
    try:
        good = server.url.replace("nats://", "nats://dunlin:s3cret@")
        bad = server.url.replace("nats://", "nats://dunlin:wrong@")
        with pytest.raises(BusUnavailable):
            await NatsBus.connect(Options((bad,)), wait_s=1)
        bus = await NatsBus.connect(Options((good,)), wait_s=10)
        await bus.ensure_streams()
        await bus.close()
    finally:
        server.kill()


async def test_tls(tmp_path: Path) -> None:
    """With TLS the server must have a certificate of the given authority, and gets ours."""
    make_certificate(tmp_path)
    files = {name: str(tmp_path / f"{name}.pem") for name in ("cert", "key")}
    server = NatsServer(
        tmp_path / "tls",
        config=(
            f'tls {{cert_file: "{files["cert"]}", key_file: "{files["key"]}",'
            f' ca_file: "{files["cert"]}", verify: true}}\n'
        ),
    )
    server.start()
    try:
        url = server.url.replace("nats://", "tls://")
        with pytest.raises(BusUnavailable):
            await NatsBus.connect(Options((url,)), wait_s=1)
        ours = Options((url,), ca=files["cert"], cert=files["cert"], key=files["key"])
        bus = await NatsBus.connect(ours, wait_s=10)
        await bus.ensure_streams()
        await bus.close()
    finally:
        server.kill()
    with pytest.raises(BusUnavailable, match="certificates"):
        await NatsBus.connect(Options((url,), ca=str(tmp_path / "none.pem")), wait_s=1)


def make_certificate(directory: Path) -> None:
    """cert.pem and key.pem of 127.0.0.1, signed by itself, for both sides."""
    subprocess.run(
        f"openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1"
        f" -subj /CN=dunlin -addext subjectAltName=IP:127.0.0.1"
        f" -addext keyUsage=digitalSignature,keyCertSign"
        f" -keyout {directory}/key.pem -out {directory}/cert.pem".split(),
        check=True,
        capture_output=True,
    )


async def test_a_lease_that_nobody_can_read_is_free(bus: NatsBus) -> None:
    """One message that no holder wrote stops nobody: it is taken over, and is no live holder."""
    subject = f"{LEASES_PREFIX}.{key_of('janitor')}"
    for data in (b"{", b"[]", b'{"holder":"\xff","ttl_s":30}'):
        await bus.publish(Message(subject, data))
        leases = NatsLeases(bus)
        assert await leases.holders("") == {}
        lease = await leases.acquire("janitor", "a", ttl_s=30)
        assert lease is not None
        await bus.publish(Message(subject, data))
        assert await leases.renew(lease, ttl_s=30) is None
