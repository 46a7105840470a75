"""
Thousands of connected switches: flowctl alone, with simulated switches that speak OpenFlow.

Real are NATS, flowctl (one or several replicas, processes as in production) and every session on
TCP. The intents are written here: a switch and a route for each node, 100 Services of 10 endpoints.
Each switch connects to every replica, as bridges do; with several replicas it remembers what it is
told, for the next owner asks. DUNLIN_BENCH_SIZES=switches:replicas,… chooses; `:silent` behind
that: switches that do not say what they hold, so that the next owner reads it and compares.
"""

import asyncio
import os
import resource
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

import uvloop

from bench import world
from bench.light_switch import LightSwitch
from bench.measure import Metric, Options, Row, Table, percentile
from bench.scale_cluster import block, node_ip
from bench.scale_plane import cpu_s_of, listening, rss_mib_of, start
from dunlin import subjects, wire
from dunlin.bus import connect
from dunlin.bus.base import Bus, Message
from dunlin.bus.nats_server import NatsServer
from dunlin.events.facts import NodeAddress
from dunlin.events.intents import AnyIntent, RouteIntent, SwitchIntent
from dunlin.events.state import Applied, Progress
from dunlin.model.addresses import derived_mac
from dunlin_flowctl.config import FlowctlSettings
from dunlin_lab.catalogue import free_port

SIZES = os.environ.get("DUNLIN_BENCH_SIZES", "100:1,1000:1,1000:3,1000:3:silent,5000:3")
QUICK = os.environ.get("DUNLIN_BENCH_SIZES", "50:1,200:1,200:3,200:3:silent")
DEADLINE_S = 900.0
IDLE_S = 10.0
CHANGES = 20
UNDERLAY = IPv4Network("172.16.0.0/12")
PODS = IPv4Network("10.0.0.0/8")


@dataclass
class Seen:
    """The acknowledgements: by node."""

    applied: dict[str, Applied] = field(default_factory=dict)
    seen_ms: dict[str, float] = field(default_factory=dict)
    """When an owner's first word of a switch that holds all came, Unix milliseconds; by node."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, bus: Bus) -> None:
        """For ever."""
        async for batch in bus.follow(subjects.STATE_STREAM):
            for record in batch.records:
                if not record.is_tombstone and subjects.split(record.subject)[0] == "applied":
                    applied = wire.decode(record.data, Applied)
                    self._note(applied)
            self.moved.set()

    def _note(self, applied: Applied) -> None:
        before = self.applied.get(applied.node)
        if before is None or before.owner != applied.owner or not before.revision:
            self.seen_ms[applied.node] = time.time() * 1000
        self.applied[applied.node] = applied

    async def until(self, count: int, revision: int, but: str = "") -> float:
        """Seconds until so many switches hold `revision`, none of them owned by replica `but`."""
        started = time.perf_counter()
        while True:
            self.moved.clear()
            good = [
                a
                for a in self.applied.values()
                if a.connected and a.revision >= revision and a.owner != but
            ]
            if len(good) >= count:
                return time.perf_counter() - started
            left = DEADLINE_S - (time.perf_counter() - started)
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self.moved.wait()
            except TimeoutError:
                raise RuntimeError(f"{len(good)} of {count} switches hold {revision}") from None


@dataclass
class Flowctls:
    """A running control plane of flowctl alone."""

    bus: Bus
    seen: Seen
    processes: list[subprocess.Popen[bytes]]
    switches: list[LightSwitch]
    revision: int = 0

    async def publish(self, intents: list[AnyIntent]) -> None:
        """Write intents, and claim that they are all."""
        messages = [Message(intent.subject, wire.encode(intent)) for intent in intents]
        results = await self.bus.publish_many(messages)
        assert isinstance(results[-1], int), results[-1]
        self.revision = results[-1]
        facts, known = subjects.FACTS_STREAM, subjects.INTENTS_STREAM
        fact_epoch, intent_epoch = await self.bus.epoch(facts), await self.bus.epoch(known)
        for service in ("ipam", "planner"):
            claim = Progress(
                service=service,
                replica=f"{service}-0",
                fact_seq=0,
                intent_seq=self.revision,
                complete=True,
                fact_epoch=fact_epoch,
                intent_epoch=intent_epoch,
            )
            await self.bus.publish(Message(claim.subject, wire.encode(claim)))

    def cpu_s(self) -> float:
        """Of all replicas."""
        return sum(cpu_s_of(process.pid) for process in self.processes)

    def ended(self) -> int:
        """Sessions that ended so far."""
        return sum(switch.counts["ended"] for switch in self.switches)


def cluster(nodes: int) -> list[AnyIntent]:
    """A switch and a route for each node; Services."""
    intents: list[AnyIntent] = []
    for number in range(nodes):
        name, mac = f"n{number}", derived_mac("router", f"n{number}")
        addresses = (NodeAddress(ip=node_ip(number), subnet=UNDERLAY),)
        pods = block(number)
        intents += [
            SwitchIntent(
                scope=name,
                key="pipeline",
                dpid=number + 1,
                router_mac=mac,
                gateway_port=1,
                uplink_port=2,
                gateway_ips=(pods[1],),
                addresses=addresses,
                pod_cidrs=(PODS,),
                local_cidrs=(pods,),
            ),
            RouteIntent(scope="all", key=name, cidrs=(pods,), addresses=addresses, router_mac=mac),
        ]
    return intents + [world.service_intent(number, 10) for number in range(100)]


@asynccontextmanager
async def running(
    directory: Path, switches: int, replicas: int, *, says: bool
) -> AsyncIterator[Flowctls]:
    """NATS with the intents in it, replicas, switches; all ended afterwards."""
    nats = NatsServer(directory / "nats")
    nats.start()
    ports = [free_port("127.0.0.1") for _ in range(replicas)]
    plane: Flowctls | None = None
    tasks: list[asyncio.Task[None]] = []
    try:
        bus = await connect(FlowctlSettings(nats_url=nats.url, replica="bench"))
        await bus.ensure_streams()
        plane = Flowctls(
            bus,
            Seen(),
            [],
            [
                LightSwitch(number + 1, remembers=replicas > 1, says=says)
                for number in range(switches)
            ],
        )
        tasks.append(asyncio.create_task(plane.seen.follow(bus)))
        await plane.publish(cluster(switches))
        for number, port in enumerate(ports):
            env = {
                "NATS_URL": nats.url,
                "DUNLIN_LOG_LEVEL": "warning",
                "DUNLIN_OPENFLOW_LISTEN": f"tcp:127.0.0.1:{port}",
                "DUNLIN_REPLICA": f"flowctl-{number}",
                # Simulated switches forget what they are told.
                "DUNLIN_AUDIT_INTERVAL_S": "3600",
            }
            (directory / str(number)).mkdir()
            plane.processes.append(start("dunlin_flowctl", directory / str(number), env))
        for port in ports:
            await listening(port)
            tasks += [asyncio.create_task(s.run("127.0.0.1", port)) for s in plane.switches]
        yield plane
    finally:
        for task in tasks:
            task.cancel()
        for process in plane.processes if plane is not None else []:
            process.send_signal(signal.SIGTERM)
        for process in plane.processes if plane is not None else []:
            process.wait(60)
        await bus.close()
        nats.stop()


async def measure(
    row: Row, directory: Path, switches: int, replicas: int, *, says: bool = True
) -> None:
    """One size."""
    async with running(directory, switches, replicas, says=says) as plane:
        row.add(owned=await plane.seen.until(switches, plane.revision))
        row.add(flowctl=plane.cpu_s(), simulated=time.process_time())
        ended, cpu = plane.ended(), plane.cpu_s()
        await asyncio.sleep(IDLE_S)
        row.add(idle=(plane.cpu_s() - cpu) / IDLE_S * 100)
        memory = [rss_mib_of(process.pid) for process in plane.processes]
        row.add(memory=sum(memory) / replicas, largest=max(memory))
        cpu, times = plane.cpu_s(), []
        for number in range(CHANGES):
            started = time.perf_counter()
            await plane.publish([world.service_intent(number % 100, 9 - number // 100)])
            await plane.seen.until(switches, plane.revision)
            times.append((time.perf_counter() - started) * 1000)
        row.add(p50=statistics.median(times), worst=max(times))
        row.add(cpu=(plane.cpu_s() - cpu) / CHANGES / switches * 1e6)
        row.add(ended=plane.ended() - ended)
        if replicas > 1:
            await _kill_one(row, plane, switches)


async def _kill_one(row: Row, plane: Flowctls, switches: int) -> None:
    """The first replica dies; until the others serve its switches."""
    dead = "flowctl-0"
    orphans = [node for node, said in plane.seen.applied.items() if said.owner == dead]
    written = sum(switch.counts["added"] for switch in plane.switches)
    killed_ms = time.time() * 1000
    plane.processes[0].kill()
    plane.processes[0].wait(10)
    # Of a process that is gone nothing can be read any more.
    rest = plane.processes[1:]
    cpu = sum(cpu_s_of(process.pid) for process in rest)
    await plane.seen.until(switches, plane.revision, but=dead)
    seen = plane.seen
    masters = [(seen.applied[node].master_since_ms - killed_ms) / 1000 for node in orphans]
    served = [(seen.seen_ms[node] - killed_ms) / 1000 for node in orphans]
    row.add(orphans=len(orphans), master_p50=percentile(masters, 0.5), master=max(masters))
    row.add(failover_p50=percentile(served, 0.5), failover=max(served))
    row.add(failover_cpu=(sum(cpu_s_of(p.pid) for p in rest) - cpu) / len(orphans) * 1000)
    row.add(rewritten=sum(switch.counts["added"] for switch in plane.switches) - written)
    row.add(after=max(rss_mib_of(process.pid) for process in rest))


def run(options: Options) -> list[Table]:
    """Every size, each once a round."""
    metrics = [
        Metric("owned", "s"),
        Metric("flowctl", "s of CPU by then"),
        Metric("simulated", "s of CPU of the switches by then"),
        Metric("memory", "MiB a replica", digits=0),
        Metric("largest", "MiB", digits=0),
        Metric("idle", "% of a core"),
        Metric("p50", "ms", digits=0),
        Metric("worst", "ms", digits=0),
        Metric("cpu", "us a switch and change", digits=0),
        Metric("ended", "sessions", digits=0),
        Metric("orphans", "switches of the replica that is killed", digits=0),
        Metric("master_p50", "s until half of them have a master"),
        Metric("master", "s until all have"),
        Metric("failover_p50", "s until half of them are in force"),
        Metric("failover", "s until all are"),
        Metric("failover_cpu", "ms of CPU a switch"),
        Metric("rewritten", "flows written by that", digits=0),
        Metric("after", "MiB, the largest replica then", digits=0),
    ]
    names = (QUICK if options.quick else SIZES).split(",")
    table = Table("Connected switches:replicas of flowctl", metrics, names[0])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    for name in names:
        switches, replicas = map(int, name.split(":")[:2])
        says = not name.endswith(":silent")
        options.progress(f"{switches} switches, {replicas} replicas")
        with tempfile.TemporaryDirectory(prefix="dunlin-bench-") as directory:
            row = table.row(name)
            uvloop.run(measure(row, Path(directory), switches, replicas, says=says))
    return [table]
