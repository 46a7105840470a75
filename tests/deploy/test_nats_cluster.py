"""NATS as k8s/ deploys it: three servers, TLS, an nkey a service, three copies."""

import asyncio
import base64
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from dunlin import subjects
from dunlin.bus.base import BusError, Message
from dunlin.bus.nats import NatsBus
from dunlin.bus.nats_client import Options, server_urls
from dunlin.bus.nats_server import NatsServerError, find_binary
from dunlin.bus.permissions import permissions
from dunlin_lab import identities
from dunlin_lab.catalogue import free_port

pytestmark = [pytest.mark.nats, pytest.mark.slow]
ROOT = Path(__file__).resolve().parents[2]


def made_secrets(*words: str) -> dict[str, dict[str, str]]:
    """What tools/cluster-secrets prints: name -> key -> text."""
    done = subprocess.run(
        [ROOT / "tools/cluster-secrets", *words], capture_output=True, text=True, check=True
    )
    return {
        item["metadata"]["name"]: item["data"]
        if item["kind"] == "ConfigMap"
        else {k: base64.b64decode(v).decode() for k, v in item["data"].items()}
        for item in yaml.safe_load_all(done.stdout)
        if item
    }


class NatsCluster:
    """nats-servers with the files of k8s/base/nats, on ports of this machine."""

    def __init__(self, directory: Path, size: int = 3) -> None:
        self.size = size
        self.directory = directory
        self.secrets = made_secrets("127.0.0.1")
        ports = [free_port("127.0.0.1") for _ in range(3 * size)]
        self.clients, self.routes = ports[:size], ports[size : 2 * size]
        self.monitors = ports[2 * size :]
        self.processes: list[subprocess.Popen[bytes]] = []
        self.environment: dict[str, str] = {}
        self.write_certificates()
        self.write_users()
        self.write_seeds()

    def write_users(self) -> None:
        """As the ConfigMap dunlin-nats-users is mounted."""
        text = self.secrets["dunlin-nats-users"]["users.conf"]
        (self.directory / "users.conf").write_text(text, encoding="ascii")

    def write_seeds(self) -> None:
        """As each service has its own Secret mounted."""
        for user in permissions():
            text = self.secrets[f"dunlin-nats-{user}"]["seed"]
            (self.directory / f"{user}.seed").write_text(text, encoding="ascii")

    def write_certificates(self) -> None:
        for key, text in self.secrets["dunlin-nats-tls"].items():
            (self.directory / key).write_text(text, encoding="ascii")

    def start(self) -> None:
        base = ROOT / "k8s/base/nats"
        text = (base / "nats.conf").read_text(encoding="utf-8")
        text = text.replace("/etc/nats-tls/", f"{self.directory}/")
        cluster = base if self.size > 1 else ROOT / "k8s/overlays/dev"
        cluster_text = (cluster / "cluster.conf").read_text(encoding="utf-8")
        cluster_text = cluster_text.replace("/etc/nats-tls/", f"{self.directory}/")
        permissions_text = (base / "permissions.conf").read_text(encoding="utf-8")
        (self.directory / "permissions.conf").write_text(permissions_text, encoding="utf-8")
        routes = ", ".join(f"nats://127.0.0.1:{port}" for port in self.routes)
        environment = {
            **os.environ,
            **self.environment,
            "DUNLIN_NATS_ROUTES": f"[{routes}]" if self.size > 1 else "[]",
        }
        for index, (client, route) in enumerate(zip(self.clients, self.routes, strict=True)):
            mine = text.replace("0.0.0.0:4222", f"127.0.0.1:{client}")
            routed = cluster_text.replace("0.0.0.0:6222", f"127.0.0.1:{route}")
            (self.directory / f"cluster-{index}.conf").write_text(routed, encoding="utf-8")
            mine = mine.replace("cluster.conf", f"cluster-{index}.conf")
            mine = mine.replace("127.0.0.1:8222", f"127.0.0.1:{self.monitors[index]}")
            mine = mine.replace('"/data"', f'"{self.directory}/data-{index}"')
            conf = self.directory / f"nats-{index}.conf"
            conf.write_text(mine, encoding="utf-8")
            command = [str(find_binary()), "-c", str(conf)]
            environment = {**environment, "POD_NAME": f"nats-{index}"}
            with (self.directory / f"log-{index}").open("wb") as log:
                self.processes.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=log)
                )

    def options(self, user: str, *, password: str = "", seed_of: str = "") -> Options:
        who = f"{user}:{password}" if password else user
        first, *others = (f"127.0.0.1:{port}" for port in self.clients)
        seed = str(self.directory / f"{seed_of or user}.seed")
        return Options(
            urls=server_urls(",".join([f"tls://{who}@{first}", *others])),
            name=user,
            creds="" if password else seed,
            ca=str(self.directory / "ca.crt"),
            replicas=self.size,
            make_streams=user == "watcher",
            timeout_s=5.0,
        )

    def probe(self, server: int, name: str) -> int:
        """Status that a probe of the StatefulSet gets now; 0 where nobody listens."""
        documents = yaml.safe_load_all((ROOT / "k8s/base/nats.yaml").read_text(encoding="utf-8"))
        (found,) = [item for item in documents if item["kind"] == "StatefulSet"]
        path = found["spec"]["template"]["spec"]["containers"][0][name]["httpGet"]["path"]
        try:
            url = f"http://127.0.0.1:{self.monitors[server]}{path}"
            return httpx.get(url, trust_env=False, timeout=5).status_code
        except httpx.HTTPError:
            return 0

    async def probed(self, server: int, name: str, status: int) -> None:
        """Until a probe gets this status."""
        async with asyncio.timeout(40):
            while await asyncio.to_thread(self.probe, server, name) != status:
                await asyncio.sleep(0.1)

    async def reload(self, *servers: int) -> None:
        """SIGHUP, until these say that they have read their configuration again."""

        def said() -> list[int]:
            logs = [(self.directory / f"log-{index}").read_text() for index in servers]
            return [log.count("Reloaded server configuration") for log in logs]

        before = said()
        for index in servers:
            self.processes[index].send_signal(signal.SIGHUP)
        async with asyncio.timeout(20):
            while not all(now > then for now, then in zip(said(), before, strict=True)):
                await asyncio.sleep(0.05)

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def nats_cluster(tmp_path: Path) -> Iterator[NatsCluster]:
    """Running, perhaps without a leader yet."""
    try:
        find_binary()
    except NatsServerError as error:
        pytest.skip(f"nats tier skipped: {error}")
    found = NatsCluster(tmp_path)
    found.start()
    yield found
    found.stop()


async def eventually(work: Any, seconds: float = 40.0) -> Any:
    """The result of `work()` once it raises no BusError: elections take a moment."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        try:
            return await work()
        except BusError:
            if asyncio.get_running_loop().time() > deadline:
                raise
            await asyncio.sleep(0.2)


async def test_one_server_is_enough_for_one_node(tmp_path: Path) -> None:
    """The overlay dev: the same files, no routes, one copy."""
    try:
        find_binary()
    except NatsServerError as error:
        pytest.skip(f"nats tier skipped: {error}")
    alone = NatsCluster(tmp_path, size=1)
    alone.start()
    try:
        watcher = await NatsBus.connect(alone.options("watcher"), wait_s=20)
        await eventually(watcher.ensure_streams)
        subject = subjects.fact("pod", "shop", "web")
        await eventually(lambda: watcher.publish(Message(subject, b"1")))
        assert (await eventually(lambda: watcher.get_last(subject))).data == b"1"
        await watcher.close()
        for name in ("startupProbe", "livenessProbe", "readinessProbe"):
            await alone.probed(0, name, 200)
    finally:
        alone.stop()


async def test_a_server_dies_and_certificates_change(nats_cluster: NatsCluster) -> None:
    """Messages outlive one of three servers; new certificates need a reload and no restart."""
    watcher = await NatsBus.connect(nats_cluster.options("watcher"), wait_s=20)
    await eventually(watcher.ensure_streams)
    subject = subjects.fact("pod", "shop", "web")
    await eventually(lambda: watcher.publish(Message(subject, b"1")))
    planner = await NatsBus.connect(nats_cluster.options("planner"), wait_s=20)
    await eventually(planner.ensure_streams)

    nats_cluster.processes[0].kill()
    await eventually(lambda: watcher.publish(Message(subject, b"2")))
    record = await eventually(lambda: planner.get_last(subject))
    assert record.data == b"2"

    # Another authority for everything: those who are connected stay, newcomers see the new one.
    nats_cluster.secrets["dunlin-nats-tls"] = made_secrets("127.0.0.1")["dunlin-nats-tls"]
    nats_cluster.write_certificates()
    await nats_cluster.reload(1, 2)
    ipam = await NatsBus.connect(nats_cluster.options("ipam"), wait_s=20)
    assert (await eventually(lambda: ipam.get_last(subject))).data == b"2"
    # A connection that breaks comes back under the new authority.
    transport = watcher.client._transport
    assert transport is not None
    transport.close()  # type: ignore[no-untyped-call]
    await eventually(lambda: watcher.publish(Message(subject, b"3")))
    assert (await eventually(lambda: ipam.get_last(subject))).data == b"3"
    for bus in (watcher, planner, ipam):
        await bus.close()


async def test_probes_see_what_a_rolling_update_must_wait_for(nats_cluster: NatsCluster) -> None:
    """A server is started once its streams are up to date; without its peers it is not."""
    watcher = await NatsBus.connect(nats_cluster.options("watcher"), wait_s=20)
    await eventually(watcher.ensure_streams)
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        for server in range(3):
            await nats_cluster.probed(server, name, 200)
    await watcher.close()
    for process in nats_cluster.processes[1:]:
        process.kill()
    await nats_cluster.probed(0, "startupProbe", 503)
    assert nats_cluster.probe(0, "livenessProbe") == 200, "restarting it would help nobody"


async def test_strangers_stay_outside(nats_cluster: NatsCluster) -> None:
    """A stranger's seed, a password, an unknown authority and plain text are refused."""
    good = nats_cluster.options("planner")
    identities.make(nats_cluster.directory, ["stranger"])
    (nats_cluster.directory / "stranger").rename(nats_cluster.directory / "stranger.seed")
    bus = await NatsBus.connect(good, wait_s=20)
    await bus.close()
    port = nats_cluster.clients[0]
    for bad in (
        nats_cluster.options("planner", seed_of="stranger"),
        nats_cluster.options("planner", password="guess"),
        Options(urls=(good.urls[0],), name="no-authority"),
        Options(urls=(f"nats://127.0.0.1:{port}",), name="nobody"),
    ):
        with pytest.raises((BusError, OSError)):
            await NatsBus.connect(bad, wait_s=1.5)


async def connected(cluster: NatsCluster, **passwords: str) -> dict[str, NatsBus]:
    """A bus of each of some services, by password where there is one."""
    found = {}
    for user in ("watcher", "planner", "ipam"):
        options = cluster.options(user, password=passwords.get(user, ""))
        found[user] = await NatsBus.connect(options, wait_s=20)
        await eventually(found[user].ensure_streams)
    return found


async def test_seeds_change_while_everybody_works(nats_cluster: NatsCluster) -> None:
    """The steps of docs/operate.md on three servers: no restart, and nobody stays outside."""
    buses = await connected(nats_cluster)
    subject = subjects.fact("pod", "shop", "web")
    publish = buses["watcher"].publish
    lost = asyncio.Event()
    buses["watcher"].client.on_disconnect.add(lost.set)
    await eventually(lambda: publish(Message(subject, b"1")))
    # 1. The servers learn the new keys beside the old ones.
    old = nats_cluster.secrets
    nats_cluster.secrets = {
        **old,
        **made_secrets("--nkeys", str(nats_cluster.directory / "users.conf")),
    }
    nats_cluster.write_users()
    await nats_cluster.reload(0, 1, 2)
    await publish(Message(subject, b"2"))
    assert not lost.is_set()
    # 2. The services get their seeds. 3. The old keys go.
    nats_cluster.write_seeds()
    users = nats_cluster.secrets["dunlin-nats-users"]
    users["users.conf"] = "".join(
        line for line in users["users.conf"].splitlines(keepends=True) if "# old" not in line
    )
    nats_cluster.write_users()
    await nats_cluster.reload(0, 1, 2)
    await asyncio.wait_for(lost.wait(), 20)
    await eventually(lambda: publish(Message(subject, b"3")))
    for name in ("planner", "ipam"):
        assert (await eventually(lambda n=name: buses[n].get_last(subject))).data == b"3"
    nats_cluster.secrets = old
    nats_cluster.write_seeds()
    with pytest.raises(BusError):
        await NatsBus.connect(nats_cluster.options("metrics"), wait_s=1.5)
    for bus in buses.values():
        await bus.close()


async def test_a_cluster_with_passwords_gets_nkeys(tmp_path: Path) -> None:
    """Old services by password and new ones by nkey at the same servers; then the passwords go."""
    try:
        find_binary()
    except NatsServerError as error:
        pytest.skip(f"nats tier skipped: {error}")
    cluster = NatsCluster(tmp_path)
    cluster.secrets |= made_secrets("--nkeys-passwords")
    cluster.write_users()
    cluster.write_seeds()
    # As envFrom gives the old Secret's keys, with its prefix.
    passwords = {user: f"p{number}of{user}" for number, user in enumerate(permissions())}
    cluster.environment = {f"DUNLIN_NATS_PASSWORD_{u}": p for u, p in passwords.items()}
    cluster.start()
    try:
        old = await connected(cluster, **passwords)
        new = await connected(cluster)
        subject = subjects.fact("pod", "shop", "web")
        for number, buses in enumerate((old, new)):
            data = b"%d" % number
            await eventually(lambda b=buses, d=data: b["watcher"].publish(Message(subject, d)))
            for reader in (old["planner"], new["planner"]):
                record = await eventually(lambda r=reader: r.get_last(subject))
                assert record.data == data
        text = cluster.secrets["dunlin-nats-users"]["users.conf"]
        assert text.count("# old") == len(permissions())
        lines = [line for line in text.splitlines(keepends=True) if "# old" not in line]
        cluster.secrets["dunlin-nats-users"]["users.conf"] = "".join(lines)
        cluster.write_users()
        await cluster.reload(0, 1, 2)
        await eventually(lambda: new["watcher"].publish(Message(subject, b"2")))
        with pytest.raises(BusError):
            await NatsBus.connect(
                cluster.options("planner", password=passwords["planner"]), wait_s=1.5
            )
        for bus in (*old.values(), *new.values()):
            await bus.close()
    finally:
        cluster.stop()
