"""Seeds at a real nats-server: taken, refused, rotated, beside passwords in an upgrade."""

import asyncio
import base64
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from dunlin import subjects
from dunlin.bus import nkeys
from dunlin.bus.base import BusError, BusUnavailable, Message
from dunlin.bus.nats import NatsBus
from dunlin.bus.nats_client import Options
from dunlin.bus.nats_server import NatsServer, NatsServerError
from dunlin.bus.permissions import nats_users, permissions
from dunlin_lab import identities

pytestmark = pytest.mark.nats
PERMISSIONS = Path("k8s/base/nats/permissions.conf")
FACT = subjects.fact("pod", "shop", "web")
PASSWORD = "p-of-the-watcher"


class Site:
    """A server and the files that a deployment mounts."""

    def __init__(self, directory: Path) -> None:
        self.server = NatsServer(directory / "nats", config='include "users.conf"\n')
        self.server.directory.mkdir()
        self.seeds = directory / "seeds"
        copy = self.server.directory / "permissions.conf"
        copy.write_bytes(PERMISSIONS.read_bytes())
        self.keys = list(identities.make(self.seeds, permissions()).items())

    def users(self, keys: Iterable[tuple[str, str]], *others: str) -> None:
        """What users.conf says from the next start or reload on."""
        text = nats_users(keys, others)
        (self.server.directory / "users.conf").write_text(text, encoding="ascii")

    async def reload(self) -> None:
        """SIGHUP, and wait until the server has taken it."""
        assert self.server.process is not None
        log = self.server.directory / "nats-server.log"
        word = "Reloaded server configuration"
        before = log.read_text().count(word)
        self.server.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(10):
            while log.read_text().count(word) == before:
                await asyncio.sleep(0.02)

    def options(self, user: str = "watcher", *, password: str = "", creds: str = "?") -> Options:
        """A client with the user's seed, another file (creds), or a password."""
        secret = f":{password}" if password else ""
        url = f"nats://{user}{secret}@127.0.0.1:{self.server.port}"
        file = str(self.seeds / user) if creds == "?" else creds
        make = user == "watcher"
        return Options(urls=(url,), name=user, creds=file, make_streams=make, timeout_s=5.0)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    """Not started yet."""
    made = Site(tmp_path)
    yield made
    made.server.kill()


def start(site: Site) -> None:
    try:
        site.server.start()
    except NatsServerError as error:
        if "no nats-server" in str(error):
            pytest.skip(f"nats tier skipped: {error}")
        raise


@asynccontextmanager
async def connected(options: Options) -> AsyncIterator[NatsBus]:
    bus = await NatsBus.connect(options, wait_s=10)
    try:
        await bus.ensure_streams()
        yield bus
    finally:
        await bus.close()


async def publishes(bus: NatsBus, data: bytes) -> None:
    """It can, perhaps after it has connected again."""
    async with asyncio.timeout(20):
        while True:
            try:
                await bus.publish(Message(FACT, data))
                return
            except BusError:
                await asyncio.sleep(0.05)


async def refused(options: Options) -> None:
    """The server does not let this one in."""
    with pytest.raises(BusUnavailable):
        await NatsBus.connect(options, wait_s=1.0)


async def until(reached: Callable[[], bool]) -> None:
    """A level, with a deadline."""
    async with asyncio.timeout(20):
        while not reached():
            await asyncio.sleep(0.02)


async def test_a_wrong_seed_is_refused(site: Site, tmp_path: Path) -> None:
    """A good seed that the server has no public key of does not open it; the right one does."""
    site.users(site.keys)
    start(site)
    identities.make(tmp_path / "other", ["watcher"])
    await refused(site.options(creds=str(tmp_path / "other" / "watcher")))
    async with connected(site.options()) as bus:
        await publishes(bus, b"1")


async def test_a_service_has_no_other_ones_rights(site: Site) -> None:
    """Who says another name with its own seed has its own permissions still."""
    site.users(site.keys)
    start(site)
    async with connected(site.options()):
        liar = site.options("watcher", creds=str(site.seeds / "metrics"))
        bus = await NatsBus.connect(liar, wait_s=5)
        with pytest.raises(BusError):
            await bus.publish(Message(FACT, b"forged"))
        await bus.close()
    async with connected(site.options("planner")) as reader:
        assert await reader.get_last(FACT) is None


async def test_a_file_that_is_no_seed_is_named(site: Site, tmp_path: Path) -> None:
    """Before anything is sent: which file, and what it is instead."""
    file = tmp_path / "seed"
    file.write_text(dict(site.keys)["watcher"], encoding="ascii")
    with pytest.raises(BusUnavailable, match=rf"{file}: a public key"):
        await NatsBus.connect(site.options(creds=str(file)), wait_s=1)
    with pytest.raises(BusUnavailable, match=r"none: No such file"):
        await NatsBus.connect(site.options(creds=str(tmp_path / "none")), wait_s=1)


async def test_seeds_are_rotated_without_a_restart(site: Site) -> None:
    """As docs/security.md says it: servers learn the new keys, services get seeds, old keys go."""
    site.users(site.keys)
    start(site)
    async with connected(site.options()) as bus:
        back = asyncio.Event()
        bus.client.on_reconnect.add(back.set)
        await publishes(bus, b"1")
        old_seed = (site.seeds / "watcher").read_bytes()
        new = list(identities.make(site.seeds, permissions()).items())
        site.users([*site.keys, *new])
        await site.reload()
        await publishes(bus, b"2")
        assert not back.is_set(), "a key more interrupts nobody"
        # Both open it meanwhile.
        kept = site.seeds / "old"
        kept.write_bytes(old_seed)
        for creds in ("?", str(kept)):
            async with connected(site.options(creds=creds)) as other:
                await publishes(other, b"3")
        site.users(new)
        await site.reload()
        await asyncio.wait_for(back.wait(), 20)
        await publishes(bus, b"4")
        record = await bus.get_last(FACT)
        assert record is not None
        assert record.data == b"4"
        await refused(site.options(creds=str(kept)))


async def test_a_spoilt_new_seed_leaves_the_old_one(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    """A reconnect with a broken file: a warning that names it, and the seed of before."""
    site.users(site.keys)
    start(site)
    async with connected(site.options()) as bus:
        good = (site.seeds / "watcher").read_text()
        (site.seeds / "watcher").write_text(good[:20] + "AAAA" + good[24:])
        back = asyncio.Event()
        bus.client.on_reconnect.add(back.set)
        with caplog.at_level(logging.WARNING):
            site.server.stop()
            site.server.start()
            await asyncio.wait_for(back.wait(), 20)
        await publishes(bus, b"1")
    (said,) = {r.getMessage() for r in caplog.records if "with those of before" in r.getMessage()}
    assert f"{site.seeds / 'watcher'}: its checksum is wrong" in said
    assert good[24:40] not in caplog.text


async def test_passwords_become_seeds_without_an_outage(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server with passwords, then with both, then with keys alone; whoever is connected stays."""
    monkeypatch.setenv("DUNLIN_NATS_PASSWORD_watcher", PASSWORD)
    by_password = (
        "{user: watcher, password: $DUNLIN_NATS_PASSWORD_watcher,"
        " permissions: $permissions_watcher}"
    )
    others = [(user, key) for user, key in site.keys if user != "watcher"]
    site.users(others, by_password)
    start(site)
    old_client = site.options(password=PASSWORD, creds="")
    async with connected(old_client) as old:
        lost = asyncio.Event()
        old.client.on_disconnect.add(lost.set)
        await refused(site.options())
        site.users(site.keys, by_password)
        await site.reload()
        async with connected(site.options()) as new:
            await publishes(old, b"1")
            await publishes(new, b"2")
            assert not lost.is_set()
        await refused(site.options(password="guess", creds=""))
        site.users(site.keys)
        await site.reload()
        await asyncio.wait_for(lost.wait(), 10)
        await refused(old_client)


async def test_a_seed_and_a_password_go_to_any_server(site: Site, tmp_path: Path) -> None:
    """A server that knows no nkeys gives no nonce: the password of NATS_URL is used there."""
    server = NatsServer(
        tmp_path / "plain",
        config=f"authorization {{ user: watcher, password: {PASSWORD} }}\n",
    )
    site.server = server
    start(site)
    async with connected(site.options(password=PASSWORD)) as bus:
        await publishes(bus, b"1")
    await refused(site.options())


class Operator:
    """A server whose users are whoever has a JWT of its account."""

    def __init__(self, directory: Path, user: str) -> None:
        self.user = user
        (self.name, self.pair), (self.account, self.tenant) = of_kind(14, 1), of_kind(0, 2)
        system = of_kind(0, 3)[0]
        tenant = {**dict.fromkeys(("subs", "data", "payload", "conn"), -1), "wildcards": True}
        operator = self.signed(self.pair, self.name, {"type": "operator"})
        accounts = {
            name: self.signed(self.pair, name, {"type": "account", "limits": tenant})
            for name in (self.account, system)
        }
        preload = ", ".join(f"{name}: {jwt}" for name, jwt in accounts.items())
        self.server = NatsServer(directory)
        self.server.config = (
            f"operator: {operator}\nsystem_account: {system}\nresolver: MEMORY\n"
            f"resolver_preload: {{ {preload} }}\n"
        )

    def signed(self, by: nkeys.Credentials, who: str, nats: dict[str, object], exp: int = 0) -> str:
        """A JWT as NATS reads it: the algorithm's name is its own."""

        def part(data: bytes) -> str:
            return base64.urlsafe_b64encode(data).decode().rstrip("=")

        issuer = self.account if by is self.tenant else self.name
        claims = {"iss": issuer, "sub": who, "iat": 1, "nats": {"version": 2, **nats}}
        parts = ({"typ": "JWT", "alg": "ed25519-nkey"}, claims | ({"exp": exp} if exp else {}))
        body = ".".join(part(json.dumps(each).encode()) for each in parts)
        return f"{body}.{part(base64.b64decode(by.sign(body)))}"

    def credentials(self, seed: str, exp: int) -> str:
        """The file of a user, as NATS' tools write it."""
        nats = {"type": "user", **dict.fromkeys(("subs", "data", "payload"), -1)}
        return (
            "-----BEGIN NATS USER JWT-----\n"
            f"{self.signed(self.tenant, self.user, nats, exp)}\n"
            "------END NATS USER JWT------\n\n-----BEGIN USER NKEY SEED-----\n"
            f"{seed}------END USER NKEY SEED------\n"
        )


def of_kind(kind: int, secret: int) -> tuple[str, nkeys.Credentials]:
    """A key pair, with the public key's text of an operator (14) or an account (0)."""
    pair = nkeys.key_pair(nkeys.seed_text(bytes([secret] * 32)))
    raw = base64.b32decode(pair.public)
    return nkeys._text(bytes([kind << 3]), raw[1:33]), pair


async def test_user_credentials_open_a_server_with_an_operator(site: Site, tmp_path: Path) -> None:
    """A JWT and a seed in one file; when it expires, the next one in the file goes on."""
    operator = Operator(tmp_path / "operator", dict(site.keys)["watcher"])
    site.server = operator.server
    start(site)
    seed, file = (site.seeds / "watcher").read_text(), tmp_path / "user.creds"
    file.write_text(operator.credentials(seed, int(time.time()) + 3))
    bus = await NatsBus.connect(site.options(creds=str(file)), wait_s=5)
    back = asyncio.Event()
    bus.client.on_reconnect.add(back.set)
    file.write_text(operator.credentials(seed, int(time.time()) + 3600))
    await asyncio.wait_for(back.wait(), 30)
    await bus.client.flush(5)
    await bus.close()
