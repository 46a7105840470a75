"""
What policies cost: a change until every switch holds it, and the packets of a Pod.

With 1, 100 and 1,000 NetworkPolicies of 50 peers. The control plane's part: real NATS, ipam,
planner, flowctl and the bridges of `endpoint_change`; one policy gets another
peer, the clock stops when all bridges hold it. The packets' part: two Pods of one node of a lab,
the server selected by every policy, the client allowed by one rule of each.
"""

import asyncio
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench import endpoint_change, lab, ovs, throughput
from bench.load import Tools, tools
from bench.measure import Metric, Options, Table, percentile, take_turns
from dunlin import wire
from dunlin.bus.base import Message
from dunlin.events.facts import (
    AttachmentFact,
    Fact,
    Meta,
    NamespaceFact,
    NetworkPolicyFact,
    PodFact,
)
from dunlin.model.addresses import MacAddress
from dunlin_lab import netns

SIZES = (1, 100, 1_000)
PEERS, APPS, PODS = 50, 100, 1_000
SPACE = "bench"
SERVICES = 10
LOADED = (0, 100, 1_000)
BATCH = 100
CHANGE = (
    Metric("p50", "ms", digits=1),
    Metric("p99", "ms", digits=1),
    Metric("planner", "MB", digits=0),
    Metric("flowctl", "MB", digits=0),
    Metric("Open vSwitch", "MB", digits=0),
)
POLICIES = f"/apis/networking.k8s.io/v1/namespaces/{lab.NAMESPACE}/networkpolicies"


def selector(app: int) -> dict[str, Any]:
    """By the label `app`."""
    return {"matchLabels": {"app": f"a{app % APPS}"}}


def policy(number: int, turn: int = 0, *, both: bool = False) -> NetworkPolicyFact:
    """50 peers, a third of them networks; another `turn` has another peer."""
    peers: list[dict[str, Any]] = [{"podSelector": selector(turn)}]
    for peer in range(PEERS - 1):
        block = {"ipBlock": {"cidr": f"192.0.{peer}.0/24"}}
        peers.append(block if peer % 3 == 0 else {"podSelector": selector(number + peer)})
    rule = {"ports": [{"port": 80}]}
    spec: dict[str, Any] = {
        "podSelector": selector(number),
        "policyTypes": ["Ingress"],
        "ingress": [{"from": peers, **rule}],
    }
    if both:
        spec |= {"policyTypes": ["Ingress", "Egress"], "egress": [{"to": peers, **rule}]}
    body = msgspec.Raw(json.dumps(spec).encode())
    return NetworkPolicyFact(namespace=SPACE, name=f"p{number}", spec=body)


def pods(switches: int) -> Iterator[Fact]:
    """Their labels, and where they are."""
    yield NamespaceFact(name=SPACE, labels={})
    for number in range(PODS):
        node, place = f"n{1 + number % switches}", 2 + number // switches
        name, uid = f"pod{number}", f"uid{number}"
        labels = {"app": f"a{number % APPS}"}
        yield PodFact(namespace=SPACE, name=name, node=node, labels=labels, meta=Meta(uid=uid))
        yield AttachmentFact(
            namespace=node,
            name=f"{name}/eth0",
            pod_namespace=SPACE,
            pod_name=name,
            pod_uid=uid,
            container_id=name,
            ips=(ip_address(f"10.244.{1 + number % switches}.{place}"),),
            mac=MacAddress(f"0a:00:00:00:{number >> 8:02x}:{number & 0xFF:02x}"),
            ofport=10 + place,
            port_name=name,
        )


# --- the control plane ----------------------------------------------------------------------------


class Changes:
    """One control plane with more and more policies."""

    def __init__(self, plane: endpoint_change.Bench, switch: ovs.Ovs) -> None:
        self._plane = plane
        self._switch = switch
        self._turn = 0

    async def publish(self, *facts: Fact) -> float:
        """Milliseconds until every switch holds all that they lead to."""
        start = time.perf_counter()
        messages = [Message(fact.subject, wire.encode(fact)) for fact in facts]
        results = await self._plane.bus.publish_many(messages)
        last = results[-1]
        assert isinstance(last, int), last
        await self._plane.in_force(last)
        return (time.perf_counter() - start) * 1000

    async def measure(self, table: Table, name: str, count: int, *, both: bool = False) -> None:
        """So many changes of one policy."""
        await self.publish(policy(0, self._turn, both=both))
        times = []
        for _ in range(count):
            self._turn += 1
            times.append(await self.publish(policy(0, self._turn, both=both)))
            await asyncio.sleep(endpoint_change.PAUSE_S)
        await self.publish(policy(0, self._turn))
        memory = {name: resident_mb(pid) for name, pid in self._pids().items()}
        table.row(name).add(p50=percentile(times, 0.5), p99=percentile(times, 0.99), **memory)

    def _pids(self) -> dict[str, int]:
        found = {"Open vSwitch": int((self._switch.directory / "ovs-vswitchd.pid").read_text())}
        tasks = Path("/proc/self/task").glob("*/children")
        for child in (pid for task in tasks for pid in task.read_text().split()):
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            for name in ("planner", "flowctl"):
                if f"dunlin_{name}".encode() in command:
                    found[name] = int(child)
        return found


def resident_mb(pid: int) -> float:
    """Resident memory of a process."""
    fields = dict(
        line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
    )
    return int(fields["VmRSS"].split()[0]) / 1024


def row_of(size: int) -> str:
    """The name of a row."""
    return f"{size:,} polic{'y' if size == 1 else 'ies'}"


async def change(switch: ovs.Ovs, options: Options, table: Table) -> None:
    """Sizes one after the other: policies only come."""
    count = 10 if options.quick else 60
    async with endpoint_change.control_plane(switch, SERVICES) as plane:
        scene = Changes(plane, switch)
        await scene.publish(*pods(endpoint_change.SWITCHES))
        standing = 0
        for size in SIZES[:2] if options.quick else SIZES:
            options.progress(f"{table.title}: {row_of(size)}")
            for first in range(standing, size, BATCH):
                await scene.publish(*map(policy, range(first, min(size, first + BATCH))))
            standing = size
            await scene.measure(table, row_of(size), count)
        await scene.measure(table, f"{row_of(standing)}, in both directions", count, both=True)
        table.notes.append(
            f"{count} changes a row; {endpoint_change.SWITCHES} bridges, {PODS:,} Pods of {APPS} "
            f"kinds, {PEERS} peers a policy; memory after the changes"
        )


# --- packets --------------------------------------------------------------------------------------


class Load:
    """A client and three servers on one node; each server is selected by other policies."""

    def __init__(self, cluster: lab.Lab, load: Tools, seconds: float) -> None:
        self.cluster, self._load, self._seconds = cluster, load, seconds
        node = cluster.nodes[0]["name"]
        names = {f"server{size}": node for size in LOADED}
        self.pods = cluster.pods(client=node, **names)
        self._ovs_env = {**os.environ, "OVS_RUNDIR": cluster.nodes[0]["ovs_rundir"]}

    def policies(self, sizes: tuple[int, ...], progress: Callable[[str], None]) -> None:
        """Each has 50 peers, of which one is the client."""
        for size in sizes:
            progress(f"{size} policies")
            for number in range(size):
                self.cluster.create(POLICIES, manifest(size, number))
        self.cluster.wait()

    def measure(self, size: int) -> Mapping[str, float]:
        """One round."""
        subprocess.run(
            ["ovs-appctl", "revalidator/purge"], env=self._ovs_env, check=True, timeout=60,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        address = self.pods[f"server{size}"]["ips"][0]
        client = self.pods["client"]["netns"]
        return throughput.measure(self._load, client, address, self._seconds)

    def serve(self, stack: ExitStack) -> None:
        """On every server."""
        for size in LOADED:
            self._load.serve(stack, self.pods[f"server{size}"]["netns"])


def manifest(size: int, number: int) -> dict[str, Any]:
    """About the server that so many policies select."""
    apps = ["client", *(f"{number}-{peer}" for peer in range(PEERS - 1))]
    peers = [{"podSelector": {"matchLabels": {"app": app}}} for app in apps]
    spec = {"podSelector": {"matchLabels": {"app": f"server{size}"}}, "ingress": [{"from": peers}]}
    return {"metadata": {"name": f"p{size}-{number}"}, "spec": spec}


def load_table(options: Options) -> Table:
    """Raises Unavailable."""
    rows = {size: f"selected by {size:,}" for size in LOADED}
    table = Table(
        "Two Pods of one node, the server selected by policies", throughput.METRICS, rows[0]
    )
    with ExitStack() as stack:
        found = stack.enter_context(tools())
        cluster = stack.enter_context(lab.running(1))
        scene = Load(cluster, found, 0.5 if options.quick else 2.0)
        scene.serve(stack)
        sizes = LOADED[:2] if options.quick else LOADED
        scene.policies(sizes, options.progress)
        ways = {rows[size]: partial(scene.measure, size) for size in sizes}
        take_turns(ways, table, options.rounds(5), options.progress)
        table.notes.append(f"datapath {cluster.datapath}; all these policies stand in every row")
    return table


def run(options: Options) -> list[Table]:
    """Raises Unavailable."""
    title = "One policy gets another peer -> every switch holds it"
    table = Table(title, CHANGE, row_of(SIZES[0]))
    with ovs.running() as switch:
        netns.run_in(switch.namespace, lambda: uvloop.run(change(switch, options, table)))
    return [table, load_table(options)]
