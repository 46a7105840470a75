"""A whole control plane as processes, with switches: what bench/scale measures."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from bench import ovs
from bench.light_switch import LightSwitch
from bench.scale_cluster import POD_CIDR, SERVICE_CIDR, Object, Size, encoded
from dunlin import subjects, wire
from dunlin.bus import connect
from dunlin.bus.base import Bus, Message, NoResponder
from dunlin.bus.nats_server import NatsServer
from dunlin.events.facts import Fact
from dunlin.events.rpc import BarrierReply, BarrierRequest
from dunlin.events.state import Applied, Progress
from dunlin_flowctl.config import FlowctlSettings
from dunlin_lab.catalogue import free_port

SERVICES_RUN = ("watcher", "ipam", "planner", "flowctl")
TICKS = os.sysconf("SC_CLK_TCK")
FOLLOWED = (
    "fact.endpointslice.bench.>",
    "fact.service.bench.>",
    "fact.node.>",
    "fact.networkpolicy.>",
    "fact.pod.added.>",
)
"""Facts whose sequence a change needs to know; none of them is of every Pod."""
CHANGE_S = 60.0


@dataclass
class Seen:
    """Newest claims, acknowledgements, and sequences of facts by subject."""

    progress: dict[str, Progress] = field(default_factory=dict)
    applied: dict[str, Applied] = field(default_factory=dict)
    facts: dict[str, int] = field(default_factory=dict)
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def follow_state(self, bus: Bus) -> None:
        """For ever."""
        async for batch in bus.follow(subjects.STATE_STREAM):
            for record in batch.records:
                if subjects.split(record.subject)[0] == "applied":
                    applied = wire.decode(record.data, Applied)
                    self.applied[applied.node] = applied
                else:
                    progress = wire.decode(record.data, Progress)
                    self.progress[progress.service] = progress
            await self._notify()

    async def follow_facts(self, bus: Bus) -> None:
        """For ever."""
        filters = [f"{subjects.PREFIX}.{name}" for name in FOLLOWED]
        async for batch in bus.follow(subjects.FACTS_STREAM, filters):
            self.facts |= {record.subject: record.seq for record in batch.records}
            await self._notify()

    async def _notify(self) -> None:
        async with self.moved:
            self.moved.notify_all()

    def planned(self, fact_seq: int) -> int | None:
        """Every intent that follows from facts up to here is published up to the returned one."""
        claims = [self.progress.get(service) for service in ("ipam", "planner")]
        if not all(c is not None and c.complete and c.fact_seq >= fact_seq for c in claims):
            return None
        return max(claim.intent_seq for claim in claims if claim is not None)

    def in_force(self, fact_seq: int, nodes: Iterable[str]) -> bool:
        """And on the switches of these nodes."""
        wanted = self.planned(fact_seq)
        if wanted is None:
            return False
        held = (self.applied.get(node) for node in nodes)
        return all(item is not None and item.revision >= wanted for item in held)

    async def until(self, what: str, reached: Callable[[], bool], timeout_s: float) -> None:
        """Raises RuntimeError: not in time."""
        try:
            async with asyncio.timeout(timeout_s), self.moved:
                await self.moved.wait_for(reached)
        except TimeoutError as error:
            revisions = sorted({item.revision for item in self.applied.values()})
            raise RuntimeError(
                f"{what}: not in {timeout_s} s: {self.progress} {len(self.applied)} switches, "
                f"revisions {revisions[:5]}"
            ) from error


@dataclass
class Plane:
    """
    A running control plane. `nodes`: those that have a switch.

    `unserved`: barriers that no replica of flowctl answered at first.
    """

    bus: Bus
    seen: Seen
    api: str
    size: Size
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    switches: list[LightSwitch] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    http: aiohttp.ClientSession | None = None
    unserved: int = 0

    async def publish(self, news: Iterable[Fact]) -> int:
        """As agents do; the last one's sequence."""
        last = 0
        waiting: list[Message] = []
        for fact in news:
            waiting.append(Message(fact.subject, wire.encode(fact)))
            if len(waiting) == 4096:
                last = await self._flush(waiting)
        return await self._flush(waiting) if waiting else last

    async def _flush(self, waiting: list[Message]) -> int:
        results = await self.bus.publish_many(waiting)
        waiting.clear()
        for result in results:
            if not isinstance(result, int):
                raise result
        assert isinstance(results[-1], int)
        return results[-1]

    async def change(self, *events: tuple[str, str, Object]) -> None:
        """(type, path, object) in the Kubernetes API."""
        lines = [f"{what} {path} {encoded(item).decode()}" for what, path, item in events]
        assert self.http is not None
        async with self.http.post(f"{self.api}/bench", data="\n".join(lines)) as answer:
            answer.raise_for_status()

    async def fact_after(self, subject: str, before: int) -> int:
        """The sequence of the next fact of this subject after `before`."""
        seen = self.seen
        await seen.until(subject, lambda: seen.facts.get(subject, 0) > before, CHANGE_S)
        return seen.facts[subject]

    async def acknowledged(self, fact_seq: int, nodes: Iterable[str]) -> None:
        """By every switch of these nodes, as the agents and `dunlin wait` ask."""
        seen = self.seen
        await seen.until("planned", lambda: seen.planned(fact_seq) is not None, CHANGE_S)
        revision = seen.planned(fact_seq) or 0
        epoch = await self.bus.epoch(subjects.INTENTS_STREAM)
        async with asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(self._barrier(node, revision, epoch))

    async def _barrier(self, node: str, revision: int, epoch: str) -> None:
        request = BarrierRequest(
            node=node, revision=revision, epoch=epoch, timeout_ms=int(CHANGE_S * 1000)
        )
        subject = subjects.rpc("flowctl", "barrier", node)
        async with asyncio.timeout(CHANGE_S):
            while True:
                try:
                    data = await self.bus.request(subject, wire.encode(request), timeout_s=CHANGE_S)
                    break
                except NoResponder:
                    # The switch has just connected again; who waits for it asks again.
                    self.unserved += 1
                    await asyncio.sleep(0.05)
        assert wire.decode(data, BarrierReply).applied, data

    def bytes_written(self) -> float:
        """To a simulated switch, on the average."""
        return sum(switch.counts["bytes"] for switch in self.switches) / len(self.switches)

    async def messages(self) -> dict[str, int]:
        """In each stream so far."""
        return {
            "facts": await self.bus.last_seq(subjects.FACTS_STREAM),
            "intents": await self.bus.last_seq(subjects.INTENTS_STREAM),
        }

    def rss_mib(self) -> dict[str, float]:
        """Of each service."""
        return {name: rss_mib_of(process.pid) for name, process in self.processes.items()}

    def cpu_s(self) -> dict[str, float]:
        """Of each service, so far."""
        return {name: cpu_s_of(process.pid) for name, process in self.processes.items()}

    def dead(self) -> list[str]:
        """Services that have ended."""
        return [name for name, process in self.processes.items() if process.poll() is not None]


def rss_mib_of(pid: int) -> float:
    """Resident memory of a process, MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_s_of(pid: int) -> float:
    """Seconds of CPU that a process has used."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / TICKS


@asynccontextmanager
async def control_plane(
    directory: Path, size: Size, switch: ovs.Ovs | None, simulated: int, bridges: int
) -> AsyncIterator[Plane]:
    """Everything but the agents' facts started, and ended afterwards."""
    nats = NatsServer(directory / "nats")
    nats.start()
    tasks: list[asyncio.Task[None]] = []
    bus = await connect(FlowctlSettings(nats_url=nats.url, replica="bench"))
    plane = Plane(bus, Seen(), "", size, http=aiohttp.ClientSession())
    stub = start("bench.stub_api", directory, {}, str(size.nodes), str(size.services),
                  str(directory / "kubeconfig"))  # fmt: skip
    try:
        await bus.ensure_streams()
        await asyncio.to_thread(_file, directory / "kubeconfig")
        plane.api = wire_server(directory / "kubeconfig")
        port = free_port("127.0.0.1")
        env = _environment(nats, directory, port)
        for name in SERVICES_RUN:
            plane.processes[name] = start(f"dunlin_{name}", directory, env)
        await listening(port)
        tasks.append(asyncio.create_task(plane.seen.follow_state(bus)))
        tasks.append(asyncio.create_task(plane.seen.follow_facts(bus)))
        await _connect_switches(plane, switch, port, (simulated, bridges), tasks)
        yield plane
    finally:
        for task in tasks:
            task.cancel()
        running = [*plane.processes.values(), stub]
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait(60)
        if plane.http is not None:
            await plane.http.close()
        await bus.close()
        nats.stop()


def _environment(nats: NatsServer, directory: Path, port: int) -> dict[str, str]:
    return {
        "NATS_URL": nats.url,
        "KUBECONFIG": str(directory / "kubeconfig"),
        "DUNLIN_LOG_LEVEL": "warning",
        # Simulated switches forget what they are told: an audit would write all of it again.
        "DUNLIN_AUDIT_INTERVAL_S": "3600",
        "DUNLIN_POD_CIDRS": str(POD_CIDR),
        "DUNLIN_SERVICE_CIDRS": str(SERVICE_CIDR),
        "DUNLIN_OPENFLOW_LISTEN": f"tcp:127.0.0.1:{port}",
    }


async def _connect_switches(
    plane: Plane,
    switch: ovs.Ovs | None,
    port: int,
    counts: tuple[int, int],
    tasks: list[asyncio.Task[None]],
) -> None:
    """Simulated ones for the first nodes, real bridges for the next."""
    simulated, bridges = counts
    plane.switches = [LightSwitch(number + 1) for number in range(simulated)]
    tasks += [asyncio.create_task(light.run("127.0.0.1", port)) for light in plane.switches]
    total = simulated
    if switch is not None:
        for number in range(simulated, simulated + bridges):
            target = f"tcp:127.0.0.1:{port}"
            await asyncio.to_thread(switch.add_bridge, f"br{number}", number + 1, target)
        total += bridges
    plane.nodes = [f"n{number}" for number in range(total)]


def wire_server(kubeconfig: Path) -> str:
    """The URL in a kubeconfig of the stub."""
    server: str = json.loads(kubeconfig.read_text())["clusters"][0]["cluster"]["server"]
    return server


def start(
    module: str, directory: Path, env: dict[str, str], *arguments: str
) -> subprocess.Popen[bytes]:
    """A service as a process; its log goes to `directory`."""
    with (directory / f"{module}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            env=os.environ | env | {"DUNLIN_API_PORT": str(free_port("127.0.0.1"))},
            stdout=log,
            stderr=log,
        )


def _file(path: Path) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        if time.monotonic() > deadline:
            raise RuntimeError(f"{path} does not appear")
        time.sleep(0.05)


async def listening(port: int) -> None:
    """Until somebody accepts there. Raises OSError: nobody does."""
    deadline = time.monotonic() + 60
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.05)
        else:
            writer.close()
            return
