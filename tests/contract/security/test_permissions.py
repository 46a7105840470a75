"""What each service's user may do at a real nats-server, and what it may not."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from nats.aio.client import Client

from dunlin import subjects
from dunlin.bus import nkeys
from dunlin.bus.base import Message
from dunlin.bus.nats import NatsBus
from dunlin.bus.nats_client import Options
from dunlin.bus.nats_server import NatsServer, NatsServerError
from dunlin.bus.permissions import (
    AGENT_FACTS,
    FACT_KINDS,
    INTENT_KINDS,
    IPAM_FACTS,
    IPAM_INTENTS,
    STREAMS,
    nats_authorization,
    nats_users,
    permissions,
)
from dunlin_lab import identities

pytestmark = pytest.mark.nats
PERMISSIONS = Path("k8s/base/nats/permissions.conf")
USERS = sorted(permissions())
PREFIX = subjects.PREFIX


def seed(server: NatsServer, user: str) -> Path:
    """The file that tells the server that one is this user."""
    return server.directory / "seeds" / user


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    """A nats-server with the deployed permissions, and public keys of this test."""
    found = NatsServer(tmp_path / "nats", config='include "users.conf"\n')
    keys = identities.make(found.directory / "seeds", USERS)
    (found.directory / "permissions.conf").write_bytes(PERMISSIONS.read_bytes())
    (found.directory / "users.conf").write_text(nats_users(keys.items()), encoding="ascii")
    try:
        found.start()
    except NatsServerError as error:
        if "no nats-server" in str(error):
            pytest.skip(f"nats tier skipped: {error}")
        raise
    yield found
    found.kill()


def options(server: NatsServer, user: str, *, make: bool = False) -> Options:
    url = f"nats://{user}@127.0.0.1:{server.port}"
    creds = str(seed(server, user))
    return Options(urls=(url,), name=user, creds=creds, make_streams=make, timeout_s=2.0)


@pytest.fixture
async def streams(server: NatsServer) -> AsyncIterator[NatsServer]:
    """The streams, made by the one who may."""
    bus = await NatsBus.connect(options(server, "watcher", make=True), wait_s=5)
    await bus.ensure_streams()
    yield server
    await bus.close()


def test_the_deployed_file_is_generated() -> None:
    """The deployed file is what the code says: a new kind or service changes both."""
    assert PERMISSIONS.read_text(encoding="utf-8") == nats_authorization(permissions())


def writers() -> list[tuple[str, str]]:
    """(subject, who may publish there): one writer each, as docs/design/contracts.md says."""
    found = []
    for kind in sorted(FACT_KINDS):
        owner = "agent" if kind in AGENT_FACTS else "ipam" if kind in IPAM_FACTS else "watcher"
        found.append((subjects.fact(kind, "ns", "name"), owner))
    for kind in sorted(INTENT_KINDS):
        for scope in ("all", "n1"):
            owner = "ipam" if kind in IPAM_INTENTS else "planner"
            found.append((subjects.intent(scope, kind, "key"), owner))
    found += [(subjects.progress(user, "r"), user) for user in ("ipam", "planner")]
    found.append((subjects.applied("n1"), "flowctl"))
    found += [(subjects.owner_member("r"), "flowctl"), (subjects.owner_switch(1), "flowctl")]
    operations = ("CREATE", "UPDATE", "PURGE", "DELETE")
    for stream in STREAMS:
        for operation in operations:
            owner = "nobody" if operation == "DELETE" else "watcher"
            found.append((f"$JS.API.STREAM.{operation}.{stream}", owner))
    return found


def test_every_stream_has_its_writers_in_the_list() -> None:
    """A stream that is new has no subject here whose writer nobody thought of."""
    listed = [subject for subject, _owner in writers()]
    for patterns in subjects.STREAM_SUBJECTS.values():
        for pattern in patterns:
            assert any(name.startswith(pattern.removesuffix(">")) for name in listed), pattern


class Peer:
    """A bare client that remembers what the server refused."""

    def __init__(self) -> None:
        self.client = Client()
        self.refused: list[str] = []

    async def connect(self, server: NatsServer, user: str) -> None:
        async def note(error: Exception) -> None:
            self.refused.append(str(error).lower())

        who = nkeys.read(str(seed(server, user)))
        self.client._public_nkey = who.public
        await self.client.connect(
            f"nats://127.0.0.1:{server.port}",
            signature_cb=who.sign,
            error_cb=note,
            inbox_prefix=f"_INBOX.{user}",
            allow_reconnect=False,
        )

    async def refusals(self, expected: int) -> set[str]:
        """Subjects that the server refused, once it has answered all that was sent."""
        # The server handles a connection's operations in order: its answer to a ping comes last;
        # nats-py hands errors to tasks of their own, which may come later still.
        await self.client.flush(5)
        for _ in range(100):
            if len(self.refused) >= expected:
                break
            await asyncio.sleep(0.02)
        return {text.split('"')[1] for text in self.refused}


@pytest.mark.parametrize("user", USERS)
async def test_nobody_writes_what_is_anothers(streams: NatsServer, user: str) -> None:
    """Every subject takes messages of its one writer; all other users are refused."""
    peer = Peer()
    await peer.connect(streams, user)
    # The payload is no request that JetStream could act on.
    for subject, _owner in writers():
        await peer.client.publish(subject, b"-")
    expected = {subject.lower() for subject, owner in writers() if owner != user}
    assert await peer.refusals(len(expected)) == expected
    await peer.client.close()


@pytest.mark.parametrize("user", USERS)
async def test_nobody_listens_to_anothers_inbox_or_serves_its_requests(
    streams: NatsServer, user: str
) -> None:
    """Replies and requests of other services cannot be overheard, nor all subjects at once."""
    peer = Peer()
    await peer.connect(streams, user)
    others = [other for other in USERS if other != user]
    wanted = [">", "_INBOX.>", f"{PREFIX}.>", "$SYS.>"]
    wanted += [f"_INBOX.{other}.>" for other in others]
    wanted += [f"{PREFIX}.rpc.{other}.sync" for other in others]
    for subject in wanted:
        await peer.client.subscribe(subject)
    expected = {subject.lower() for subject in wanted}
    assert await peer.refusals(len(expected)) == expected
    await peer.client.close()


async def test_without_a_seed_nobody_comes_in(streams: NatsServer) -> None:
    """No user, a name alone, and passwords are refused: the server knows public keys only."""
    for who in ("", "watcher@", "watcher:no@", "root:root@"):
        client = Client()

        async def quiet(_error: Exception) -> None:
            """Not a noise in the test's output."""

        with pytest.raises(Exception, match=r"(?i)authorization"):
            await client.connect(
                f"nats://{who}127.0.0.1:{streams.port}",
                allow_reconnect=False,
                max_reconnect_attempts=0,
                error_cb=quiet,
            )


@pytest.mark.parametrize("user", USERS)
async def test_every_user_can_do_its_work(streams: NatsServer, user: str) -> None:
    """Each reads every stream from its start to now, and publishes on each subject of its own."""
    bus = await NatsBus.connect(options(streams, user), wait_s=5)
    await bus.ensure_streams()
    mine = [s for s, owner in writers() if owner == user and s.startswith(PREFIX)]
    for subject in mine:
        assert await bus.publish(Message(subject, b"x")) > 0
    for stream in subjects.STREAM_SUBJECTS:
        async with asyncio.timeout(10):
            async for batch in bus.follow(stream):
                if batch.caught_up:
                    break
    await bus.close()


async def test_requests_reach_who_serves_them(streams: NatsServer) -> None:
    """An agent asks ipam and flowctl, flowctl asks the watcher."""

    async def echo(_subject: str, data: bytes) -> bytes:
        return data

    buses = {
        user: await NatsBus.connect(options(streams, user), wait_s=5)
        for user in ("agent", "ipam", "flowctl", "watcher")
    }
    pairs = [
        ("agent", "ipam", subjects.rpc("ipam", "allocate")),
        ("agent", "flowctl", subjects.rpc("flowctl", "barrier", "n1")),
        ("flowctl", "watcher", subjects.rpc("watcher", "sync")),
    ]
    for asker, server, subject in pairs:
        await buses[server].serve(subject, echo)
        # The subscription is at the server once it has answered what came after it.
        await buses[server].client.flush(5)
        assert await buses[asker].request(subject, b"?", timeout_s=5) == b"?"
    for bus in buses.values():
        await bus.close()


async def test_streams_are_waited_for(server: NatsServer) -> None:
    """Who may not make streams may start first, and goes on once the watcher has made them."""
    waiting = await NatsBus.connect(options(server, "planner"), wait_s=5)
    task = asyncio.create_task(waiting.ensure_streams())
    done, _ = await asyncio.wait({task}, timeout=0.3)
    assert not done
    maker = await NatsBus.connect(options(server, "watcher", make=True), wait_s=5)
    await maker.ensure_streams()
    await asyncio.wait_for(task, 10)
    await maker.close()
    await waiting.close()


async def test_a_consumer_does_not_forge_an_intent(streams: NatsServer) -> None:
    """Who may create consumers cannot have the server put a message of his into another stream."""
    intent = subjects.intent("all", "route", "forged")
    bus = await NatsBus.connect(options(streams, "agent"), wait_s=5)
    fact = subjects.fact("attachment", "n1", "forged")
    await bus.publish(Message(fact, b"forged"))
    inbox = bus.client.new_inbox()
    arrived = asyncio.Event()
    await bus.client.add_sink(inbox, lambda *_message: arrived.set())
    # The second is the proof that such a consumer works at all.
    for name, target in (("forger", intent), ("honest", inbox)):
        config = {
            "name": name,
            "deliver_subject": target,
            "deliver_policy": "all",
            "ack_policy": "none",
            "filter_subjects": [fact],
            "mem_storage": True,
        }
        stream = subjects.FACTS_STREAM
        await bus.api.call(
            f"CONSUMER.CREATE.{stream}.{name}",
            {"stream_name": stream, "config": config, "action": "create"},
        )
    await asyncio.wait_for(arrived.wait(), 5)
    assert await bus.get_last(intent) is None
    await bus.close()


def test_kinds_have_one_writer() -> None:
    """The sets of kinds are disjoint, and cover every fact and intent type there is."""
    assert not AGENT_FACTS & IPAM_FACTS
    assert AGENT_FACTS | IPAM_FACTS <= FACT_KINDS
    assert IPAM_INTENTS <= INTENT_KINDS
