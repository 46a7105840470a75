"""
What one change costs, and steady changes, by size of the cluster.

Real are, as processes: NATS, watcher, ipam, planner, flowctl; and some bridges in one Open vSwitch.
Simulated are: the Kubernetes API (it lists and watches), the agents (their facts are published
here), and other switches, which speak OpenFlow but only count. Every node has a podCIDR, a switch
fact and 30 Pods with an attachment each; only the nodes of `plane.nodes` have a switch that
connects. Every Service has ten endpoints, and switches count each endpoint's traffic.

By environment: DUNLIN_BENCH_SIZES=nodes:services,... ; DUNLIN_BENCH_SWITCHES (100 simulated),
DUNLIN_BENCH_BRIDGES (real ones: 100, or 10 from 5,000 Services on); DUNLIN_BENCH_CHURN_S.
"""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

from bench import ovs, scale_cluster
from bench.measure import Metric, Options, Row, Table, at_rest, percentile
from bench.scale_cluster import NODES, POLICIES, SERVICES, SLICES, SPARE, Size
from bench.scale_plane import SERVICES_RUN, Plane, control_plane
from dunlin import subjects
from dunlin_lab import netns

SIZES = ((100, 1_000), (1_000, 1_000), (1_000, 10_000), (5_000, 10_000))
QUICK_SIZES = ((20, 100), (200, 100), (200, 1_000))
MANY_SERVICES = 5_000
CHURN_RATE = 20
LOAD_S = 900.0
KINDS = ("endpoints", "service", "pod", "policy", "node")


@dataclass
class Changes:
    """Changes of each kind; `number` counts them."""

    plane: Plane
    number: int = 0

    async def endpoints(self) -> tuple[int, Iterable[str]]:
        """One of a Service's ten endpoints is another one: every switch."""
        size, service = self.plane.size, self.number * 7919 % self.plane.size.services
        item = scale_cluster.slice_object(size, service, self.number)
        subject = subjects.fact("endpointslice", "bench", f"s{service}-slice")
        return await self._fact(subject, ("MODIFIED", SLICES, item)), self.plane.nodes

    async def service(self) -> tuple[int, Iterable[str]]:
        """A new Service with its endpoints: every switch."""
        size, service = self.plane.size, self.plane.size.services + self.number
        subject = subjects.fact("endpointslice", "bench", f"s{service}-slice")
        made = scale_cluster.service_object(service), scale_cluster.slice_object(size, service)
        events = ("ADDED", SERVICES, made[0]), ("ADDED", SLICES, made[1])
        return await self._fact(subject, *events), self.plane.nodes

    async def pod(self) -> tuple[int, Iterable[str]]:
        """A Pod's interface stands: its node's switch."""
        node = self.number % len(self.plane.nodes)
        ip = scale_cluster.block(node)[min(SPARE - 1, 100 + self.number // len(self.plane.nodes))]
        name, labels = f"a{self.number}", {"app": "added"}
        pod = scale_cluster.any_pod(name, "added", node, ip, labels)
        subject = subjects.fact("pod", "added", name)
        await self._fact(subject, ("ADDED", scale_cluster.PODS, pod))
        made = scale_cluster.attachment(name, "added", node, ip, 1000 + self.number)
        return await self.plane.publish([made]), [f"n{node}"]

    async def policy(self) -> tuple[int, Iterable[str]]:
        """The Pods of an application become isolated: every switch, or those of its Pods."""
        item = scale_cluster.policy_object(self.plane.size, self.number)
        meta = item["metadata"]
        subject = subjects.fact("networkpolicy", meta["namespace"], meta["name"])
        return await self._fact(subject, ("ADDED", POLICIES, item)), self.plane.nodes

    async def node(self) -> tuple[int, Iterable[str]]:
        """A Node comes, with its switch: every switch gets a route."""
        node = self.plane.size.nodes + self.number
        subject = subjects.fact("node", "", f"n{node}")
        await self._fact(subject, ("ADDED", NODES, scale_cluster.node_object(node)))
        return await self.plane.publish([scale_cluster.switch_fact(node)]), self.plane.nodes

    async def _fact(self, subject: str, *events: tuple[str, str, dict[str, Any]]) -> int:
        before = self.plane.seen.facts.get(subject, 0)
        await self.plane.change(*events)
        return await self.plane.fact_after(subject, before)

    async def one(self, kind: str) -> float:
        """Milliseconds from the API's change to the acknowledgement of all that it concerns."""
        self.number += 1
        start = time.perf_counter()
        do: Callable[[], Awaitable[tuple[int, Iterable[str]]]] = getattr(self, kind)
        seq, nodes = await do()
        await self.plane.acknowledged(seq, nodes)
        return (time.perf_counter() - start) * 1000


@dataclass
class Tables:
    """`cost`: a row a size and kind; `whole`: a row a size."""

    cost: Table
    whole: Table


async def measure(
    size: Size, options: Options, tables: Tables, switch: ovs.Ovs | None, counts: tuple[int, int]
) -> None:
    """Load one cluster, change it one by one, then keep changing it."""
    with TemporaryDirectory(prefix="dunlin-scale-") as name:
        async with control_plane(Path(name), size, switch, *counts) as plane:
            await _load(plane, options, tables.whole.row(str(size)))
            at_rest()
            changes = Changes(plane)
            for kind in KINDS:
                options.progress(f"{size}: {kind}")
                row = tables.cost.row(f"{kind}, {size.nodes:,} nodes, {size.services:,} Services")
                await _cost(changes, kind, 15 if options.quick else 40, row)
            options.progress(f"{size}: {CHURN_RATE} Pod changes a second")
            await _churn(plane, tables.whole.row(str(size)))
            if ended := sum(light.counts["ended"] for light in plane.switches):
                tables.whole.notes.append(f"{size}: {ended} sessions of simulated switches ended")
            if plane.unserved:
                note = f"{size}: {plane.unserved} barriers were not answered at first"
                tables.whole.notes.append(note)
            dead = plane.dead()
            if dead:
                raise RuntimeError(f"{dead} ended by itself")


async def _load(plane: Plane, options: Options, row: Row) -> None:
    """Until every switch holds everything, and no fact follows from any other."""
    started = time.perf_counter()
    options.progress(f"{plane.size}: first convergence")
    seq = await plane.publish(scale_cluster.agents(plane.size))
    published = time.perf_counter() - started
    while True:
        target = seq
        reached = partial(plane.seen.in_force, seq, plane.nodes)
        await plane.seen.until("first convergence", reached, LOAD_S)
        seq = (await plane.messages())["facts"]
        if seq == target:
            break
    row.add(agents=published, convergence=time.perf_counter() - started)
    row.add(switch_bytes=plane.bytes_written() / 2**20)
    thousands = plane.size.pods / 1000
    for name, mib in plane.rss_mib().items():
        row.add(**{f"{name}_rss": mib, f"{name}_1000": mib / thousands})


async def _cost(changes: Changes, kind: str, count: int, row: Row) -> None:
    """One change after the other, each from rest."""
    plane = changes.plane
    # The first ones find everything cold.
    for _ in range(3):
        await changes.one(kind)
    cpu, written, messages = plane.cpu_s(), plane.bytes_written(), await plane.messages()
    took = [await changes.one(kind) for _ in range(count)]
    after = await plane.messages()
    spent = sum(plane.cpu_s().values()) - sum(cpu.values())
    row.add(
        p50=percentile(took, 0.5),
        p99=percentile(took, 0.99),
        max=max(took),
        cpu=spent / count * 1000,
        facts=(after["facts"] - messages["facts"]) / count,
        intents=(after["intents"] - messages["intents"]) / count,
        bytes=(plane.bytes_written() - written) / count,
    )


async def _churn(plane: Plane, row: Row) -> None:
    """20 Pods a second change, and with each the EndpointSlice of one Service."""
    seconds = float(os.environ.get("DUNLIN_BENCH_CHURN_S", "10"))
    size, start, cpu = plane.size, time.perf_counter(), plane.cpu_s()
    for number in range(int(seconds * CHURN_RATE)):
        pod = scale_cluster.pod_object(size, number * 7919 % size.pods, number + 1)
        change = scale_cluster.slice_object(size, number * 31 % size.services, 1000 + number)
        await plane.change(("MODIFIED", scale_cluster.PODS, pod), ("MODIFIED", SLICES, change))
        await asyncio.sleep(max(0.0, start + (number + 1) / CHURN_RATE - time.perf_counter()))
    took = time.perf_counter() - start
    for name, spent in plane.cpu_s().items():
        row.add(**{f"{name}_cpu": (spent - cpu[name]) / took * 100})


def _measure(
    size: Size, options: Options, tables: Tables, switch: ovs.Ovs | None, counts: tuple[int, int]
) -> None:
    uvloop.run(measure(size, options, tables, switch, counts))


def sizes(options: Options) -> list[Size]:
    """As asked for."""
    given = os.environ.get("DUNLIN_BENCH_SIZES")
    if given:
        pairs = [word.split(":") for word in given.split(",")]
        return [Size(int(nodes), int(services)) for nodes, services in pairs]
    return [Size(*pair) for pair in (QUICK_SIZES if options.quick else SIZES)]


def switches(size: Size) -> tuple[int, int]:
    """Simulated and real ones: no more than nodes."""
    few = "10" if size.services >= MANY_SERVICES else "100"
    bridges = min(int(os.environ.get("DUNLIN_BENCH_BRIDGES", few)), size.nodes // 2)
    simulated = min(int(os.environ.get("DUNLIN_BENCH_SWITCHES", "100")), size.nodes - bridges)
    return simulated, bridges


def run(options: Options) -> list[Table]:
    """One row a size; ratios are to the smallest. Raises Unavailable."""
    chosen = sizes(options)
    first = f"{KINDS[0]}, {chosen[0].nodes:,} nodes, {chosen[0].services:,} Services"
    cost = [
        Metric("p50", "ms"), Metric("p99", "ms"), Metric("max", "ms"), Metric("cpu", "ms CPU"),
        Metric("facts", "messages"), Metric("intents", "messages"), Metric("bytes", "to a switch"),
    ]  # fmt: skip
    whole = [
        Metric("agents", "s"), Metric("convergence", "s"), Metric("switch_bytes", "MiB"),
        *(Metric(f"{name}_rss", "MiB") for name in SERVICES_RUN),
        *(Metric(f"{name}_1000", "MiB per 1,000 Pods", digits=2) for name in SERVICES_RUN),
        *(Metric(f"{name}_cpu", "% of a core") for name in SERVICES_RUN),
    ]  # fmt: skip
    tables = Tables(
        Table("One change, until all switches that it concerns have acknowledged", cost, first),
        Table("The whole cluster", whole, str(chosen[0])),
    )
    for size in chosen:
        simulated, bridges = switches(size)
        with ovs.running() if bridges else nullcontext() as switch:
            counts = (simulated, bridges)
            work = partial(_measure, size, options, tables, switch, counts)
            try:
                if switch is None:
                    work()
                else:
                    netns.run_in(switch.namespace, work)
            except (RuntimeError, TimeoutError, ExceptionGroup) as error:
                # The sizes before it took minutes: what they gave is worth having.
                tables.whole.notes.append(f"[bold red]{size} failed:[/] {error!r}"[:500])
        tables.whole.notes.append(f"{size}: {simulated} simulated switches, {bridges} bridges")
    tables.whole.notes.append(f"CPU: while {CHURN_RATE} Pods and as many EndpointSlices a second")
    return [tables.cost, tables.whole]
