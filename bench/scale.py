"""
The cost of one change, and of steady changes, by size of the cluster.

Real are: NATS, ipam, the planner, flowctl (processes as in production). Simulated are: the watcher
and the agents (their facts are published here) and ten switches, which speak OpenFlow but only
count. Each size has one ready Node with switch, podCIDR and 30 Pods a node, and its Services of 10
endpoints. DUNLIN_BENCH_SIZES=nodes:services,... chooses others, DUNLIN_BENCH_CHURN_S how long the
20 Pod changes a second are kept up.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from tempfile import TemporaryDirectory

import uvloop

from bench.light_switch import LightSwitch
from bench.measure import Metric, Options, Row, Table, percentile
from dunlin import subjects, wire
from dunlin.bus import connect
from dunlin.bus.base import Bus, Message
from dunlin.bus.nats_server import NatsServer
from dunlin.events.facts import (
    Endpoint,
    EndpointPort,
    EndpointSliceFact,
    Fact,
    Meta,
    NodeAddress,
    NodeFact,
    PodFact,
    ServiceFact,
    ServicePort,
    SwitchFact,
    SyncFact,
)
from dunlin.events.state import Applied, Progress
from dunlin.model.addresses import derived_mac
from dunlin_flowctl.config import FlowctlSettings
from dunlin_lab.catalogue import free_port

SIZES = ((100, 1_000), (1_000, 1_000), (1_000, 5_000), (5_000, 10_000))
QUICK_SIZES = ((20, 100), (200, 100), (200, 1_000))
SWITCHES = 10
PODS_A_NODE = 30
ENDPOINTS = 10
POD_CIDR = IPv4Network("10.128.0.0/9")
SERVICE_CIDR = IPv4Network("10.96.0.0/12")
NODE_CIDR = IPv4Network("172.16.0.0/12")
SERVICES_RUN = ("ipam", "planner", "flowctl")
CHURN_RATE = 20
LOAD_S = 300.0
CHANGE_S = 30.0
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Size:
    """How large the cluster is."""

    nodes: int
    services: int

    def __str__(self) -> str:
        """The name of its row."""
        pods = self.nodes * PODS_A_NODE
        return f"{self.nodes:,} nodes, {pods:,} Pods, {self.services:,} Services"


def block(node: int) -> IPv4Network:
    """The Pods of node 0 …."""
    return IPv4Network((int(POD_CIDR.network_address) + node * 256, 24))


def pod_ip(number: int) -> IPv4Address:
    """Pod `number` of the cluster."""
    node, index = divmod(number, PODS_A_NODE)
    return block(node)[index + 2]


def pod_fact(number: int, change: int = 0) -> PodFact:
    """A running Pod; another `change` has another label."""
    return PodFact(
        namespace=f"ns{number % 100}",
        name=f"p{number}",
        node=f"n{number // PODS_A_NODE}",
        ips=(pod_ip(number),),
        labels={"app": f"s{number % 1000}", "change": str(change)},
        ready=True,
        meta=Meta(resource_version=str(change)),
    )


def slice_fact(size: Size, service: int, change: int = 0) -> EndpointSliceFact:
    """Its ten endpoints, spread over the cluster; another `change` has another last one."""
    pods = size.nodes * PODS_A_NODE
    chosen = [(service * 97 + i * 31) % pods for i in range(ENDPOINTS - 1)]
    chosen.append((service * 97 + 31 * ENDPOINTS + change) % pods)
    return EndpointSliceFact(
        namespace="bench",
        name=f"s{service}-slice",
        service=f"s{service}",
        ports=(EndpointPort(name="http", port=8080),),
        endpoints=tuple(Endpoint(ip=pod_ip(number)) for number in chosen),
        meta=Meta(resource_version=str(change)),
    )


def facts(size: Size) -> Iterator[Fact]:
    """The whole cluster, in the order of the watcher and then the agents."""
    for node in range(size.nodes):
        ip = NODE_CIDR[node + 1]
        yield NodeFact(name=f"n{node}", ips=(ip,), pod_cidrs=(block(node),), ready=True)
        yield SwitchFact(
            name=f"n{node}",
            dpid=node + 1,
            router_mac=derived_mac("router", f"n{node}"),
            uplink_mac=derived_mac("uplink", f"n{node}"),
            gateway_port=1,
            uplink_port=2,
            gateway_ips=(block(node)[1],),
            addresses=(NodeAddress(ip=ip, subnet=ip_network(NODE_CIDR)),),
        )
    yield from map(pod_fact, range(size.nodes * PODS_A_NODE))
    for service in range(size.services):
        yield ServiceFact(
            namespace="bench",
            name=f"s{service}",
            cluster_ips=(SERVICE_CIDR[1000 + service],),
            ports=(ServicePort(name="http", port=80),),
        )
        yield slice_fact(size, service)
    yield SyncFact(name="watcher", meta=Meta(observed_ms=1))


@dataclass
class Seen:
    """Newest claims and acknowledgements."""

    progress: dict[str, Progress] = field(default_factory=dict)
    applied: dict[str, Applied] = field(default_factory=dict)
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def follow(self, bus: Bus) -> None:
        """For ever."""
        async for batch in bus.follow(subjects.STATE_STREAM):
            for record in batch.records:
                if subjects.split(record.subject)[0] == "applied":
                    applied = wire.decode(record.data, Applied)
                    self.applied[applied.node] = applied
                else:
                    progress = wire.decode(record.data, Progress)
                    self.progress[progress.service] = progress
            async with self.moved:
                self.moved.notify_all()

    def in_force(self, fact_seq: int) -> bool:
        """Every intent that follows from facts up to here is on every switch."""
        claims = [self.progress.get(service) for service in ("ipam", "planner")]
        if not all(c is not None and c.complete and c.fact_seq >= fact_seq for c in claims):
            return False
        wanted = max(claim.intent_seq for claim in claims if claim is not None)
        return len(self.applied) >= SWITCHES and all(
            applied.revision >= wanted for applied in self.applied.values()
        )

    async def until_in_force(self, fact_seq: int, timeout_s: float) -> None:
        """Raises RuntimeError: not in time."""
        try:
            async with asyncio.timeout(timeout_s), self.moved:
                await self.moved.wait_for(lambda: self.in_force(fact_seq))
        except TimeoutError as error:
            revisions = {name: item.revision for name, item in self.applied.items()}
            raise RuntimeError(
                f"fact {fact_seq} not in force in {timeout_s} s: {self.progress} {revisions}"
            ) from error


@dataclass
class Plane:
    """A running control plane."""

    bus: Bus
    seen: Seen
    processes: dict[str, subprocess.Popen[bytes]]
    switches: list[LightSwitch]

    async def publish(self, news: Iterable[Fact]) -> int:
        """All of them; the last one's sequence."""
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

    def bytes_written(self) -> int:
        """To all switches."""
        return sum(switch.counts["bytes"] for switch in self.switches)

    async def intents(self) -> int:
        """Messages in the intent stream so far."""
        return await self.bus.last_seq(subjects.INTENTS_STREAM)

    def rss_mib(self) -> float:
        """Of the three services."""
        return sum(_rss_mib(process.pid) for process in self.processes.values())

    def cpu_s(self) -> float:
        """Of the three services, so far."""
        return sum(_cpu_s(process.pid) for process in self.processes.values())


def _rss_mib(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _cpu_s(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(stat[11]) + int(stat[12])) / TICKS


@asynccontextmanager
async def control_plane(directory: Path) -> AsyncIterator[Plane]:
    """Everything started, and ended afterwards."""
    nats = NatsServer(directory / "nats")
    nats.start()
    processes: dict[str, subprocess.Popen[bytes]] = {}
    tasks: list[asyncio.Task[None]] = []
    bus = await connect(FlowctlSettings(nats_url=nats.url, replica="bench"))
    try:
        await bus.ensure_streams()
        port = free_port("127.0.0.1")
        env = os.environ | {
            "NATS_URL": nats.url,
            "DUNLIN_LOG_LEVEL": "warning",
            "DUNLIN_POD_CIDRS": str(POD_CIDR),
            "DUNLIN_SERVICE_CIDRS": str(SERVICE_CIDR),
            "DUNLIN_OPENFLOW_LISTEN": f"tcp:127.0.0.1:{port}",
        }
        for name in SERVICES_RUN:
            processes[name] = _start(name, directory, env)
        await _listening(port)
        seen = Seen()
        switches = [LightSwitch(number + 1) for number in range(SWITCHES)]
        tasks.append(asyncio.create_task(seen.follow(bus)))
        tasks += [asyncio.create_task(switch.run("127.0.0.1", port)) for switch in switches]
        yield Plane(bus, seen, processes, switches)
    finally:
        for task in tasks:
            task.cancel()
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        for process in processes.values():
            process.wait(60)
        await bus.close()
        nats.stop()


def _start(name: str, directory: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    with (directory / f"{name}.log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-m", f"dunlin_{name}"],
            env=env | {"DUNLIN_API_PORT": str(free_port("127.0.0.1"))},
            stdout=log,
            stderr=log,
        )


async def _listening(port: int) -> None:
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


async def measure(size: Size, options: Options, row: Row) -> None:
    """Load one cluster, change it one by one, then keep changing it."""
    with TemporaryDirectory(prefix="dunlin-scale-") as name:
        async with control_plane(Path(name)) as plane:
            started = time.perf_counter()
            loaded = await plane.publish(facts(size))
            published_s = time.perf_counter() - started
            await plane.seen.until_in_force(loaded, LOAD_S)
            row.add(publish=published_s, convergence=time.perf_counter() - started)
            pods = size.nodes * PODS_A_NODE
            row.add(rss=plane.rss_mib(), rss_1000=plane.rss_mib() / pods * 1000)
            await _changes(plane, size, 20 if options.quick else 60, row)
            await _churn(plane, size, row)


async def _changes(plane: Plane, size: Size, count: int, row: Row) -> None:
    """One endpoint change after the other, each from rest."""
    took: list[float] = []
    # The first ones find everything cold.
    for number in range(3):
        seq = await plane.publish([slice_fact(size, number, 1)])
        await plane.seen.until_in_force(seq, CHANGE_S)
    cpu, written, intents = plane.cpu_s(), plane.bytes_written(), await plane.intents()
    for number in range(1, count + 1):
        start = time.perf_counter()
        seq = await plane.publish([slice_fact(size, number * 7919 % size.services, 1 + number)])
        await plane.seen.until_in_force(seq, CHANGE_S)
        took.append((time.perf_counter() - start) * 1000)
    row.add(
        p50=percentile(took, 0.5),
        p99=percentile(took, 0.99),
        max=max(took),
        cpu_change=(plane.cpu_s() - cpu) / count * 1000,
        bytes=(plane.bytes_written() - written) / count / SWITCHES,
        intents=(await plane.intents() - intents) / count,
    )


async def _churn(plane: Plane, size: Size, row: Row) -> None:
    """20 Pods a second change, and with each the EndpointSlice of one Service."""
    seconds = float(os.environ.get("DUNLIN_BENCH_CHURN_S", "5"))
    cpu, start, seq = plane.cpu_s(), time.perf_counter(), 0
    for number in range(int(seconds * CHURN_RATE)):
        pod = pod_fact(number * 7919 % (size.nodes * PODS_A_NODE), number + 1)
        change = slice_fact(size, number * 31 % size.services, 1000 + number)
        seq = await plane.publish([pod, change])
        await asyncio.sleep(max(0.0, start + (number + 1) / CHURN_RATE - time.perf_counter()))
    await plane.seen.until_in_force(seq, CHANGE_S)
    row.add(cpu_churn=(plane.cpu_s() - cpu) / (time.perf_counter() - start) * 100)


def sizes(options: Options) -> list[Size]:
    """As asked for."""
    given = os.environ.get("DUNLIN_BENCH_SIZES")
    if given:
        pairs = [word.split(":") for word in given.split(",")]
        return [Size(int(nodes), int(services)) for nodes, services in pairs]
    return [Size(*pair) for pair in (QUICK_SIZES if options.quick else SIZES)]


def run(options: Options) -> list[Table]:
    """One table, a row a size; ratios are to the smallest."""
    metrics = [
        Metric("publish", "s"),
        Metric("convergence", "s"),
        Metric("p50", "ms"),
        Metric("p99", "ms"),
        Metric("max", "ms"),
        Metric("cpu_change", "ms CPU"),
        Metric("bytes", "to a switch"),
        Metric("intents", "messages"),
        Metric("rss", "MiB"),
        Metric("rss_1000", "MiB per 1,000 Pods", digits=2),
        Metric("cpu_churn", "% of a core"),
    ]
    chosen = sizes(options)
    table = Table("Cost of one endpoint change, by size of the cluster", metrics, str(chosen[0]))
    for size in chosen:
        options.progress(str(size))
        uvloop.run(measure(size, options, table.row(str(size))))
    table.notes.append(
        f"{SWITCHES} simulated switches; ipam, planner and flowctl one process each; churn: "
        f"{CHURN_RATE} Pods and as many EndpointSlices a second"
    )
    return [table]
