"""
Through a Service: first packet, new connections, established traffic, against kube-proxy's rules.

Two Pods of one node, a router each way: a switch with Dunlin's flows (the lab's, its datapath and
port type as it chooses), and two kernels with the rules that kube-proxy writes for the same
Services (bench/kube_proxy.py). No control plane runs meanwhile, neither ours nor another: rules
against rules. Each Service has ten endpoints, which are ten addresses of one Pod; connections go to
all Services in turn.
"""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address, ip_address, ip_interface
from pathlib import Path
from typing import Any

from bench import baseline, kube_proxy, lab
from bench.load import LOAD_PORT, STREAM_PORT, Tools, output, tools
from bench.measure import Metric, Options, Table, Unavailable, percentile, take_turns
from dunlin.events.facts import (
    Endpoint,
    EndpointPort,
    EndpointSliceFact,
    Protocol,
    ServiceFact,
    ServicePort,
)
from dunlin.events.intents import EndpointIntent, PolicySubjectIntent, ServicePortIntent
from dunlin.model.addresses import MacAddress
from dunlin.openflow.cookie import KINDS, OWNER
from dunlin.openflow.flow import Program
from dunlin.openflow.render import flow_text, group_text
from dunlin.pipeline import compile_intent
from dunlin_lab import links, netns
from dunlin_planner.core.events import Upserted
from dunlin_planner.core.step import intents, step
from dunlin_planner.state import Cluster, State

SIZES = (10, 1_000, 10_000)
ENDPOINTS = 10
FIRST_IP = IPv4Address("10.96.64.0")
COLD_SAMPLES = 100
"""First packets a round, of as many different Services as there are, after caches were emptied."""
WARM = 3_000
"""Connections before those that are counted, to as many Services: the first of these again."""
LOAD_LIMIT_S = 240
"""For one transaction of a kernel's rules."""
CONTROL_PLANE = ("runner", "flowctl", "planner", "ipam", "watcher", "metrics", "agent", "nats")
IPTABLES, NFTABLES, DUNLIN = "kube-proxy, iptables", "kube-proxy, nftables", "Dunlin"
METRICS = (
    Metric("first packet, emptied caches, p50", "us"),
    Metric("first packet, emptied caches, p90", "us"),
    Metric("connect p50", "us"),
    Metric("connect p99", "us"),
    Metric("new connections", "1/s", lower_is_better=False, digits=0),
    Metric("established: TCP", "Gbit/s", lower_is_better=False, digits=2),
    Metric("established: request/response p50", "us"),
    Metric("established: UDP 18 bytes received", "1/s", lower_is_better=False, digits=0),
)
PORTS = (
    ("load", Protocol.TCP, LOAD_PORT),
    ("load-udp", Protocol.UDP, LOAD_PORT),
    ("stream", Protocol.TCP, STREAM_PORT),
)


def ports_of(number: int) -> Sequence[tuple[str, Protocol, int]]:
    """Every Service has one port; the first one also those of established traffic."""
    return PORTS if number == 0 else PORTS[:1]


def endpoints_of(protocol: Protocol, endpoints: Sequence[str]) -> Sequence[str]:
    """All, but of UDP the first: our server would answer from its first address."""
    return endpoints[:1] if protocol == Protocol.UDP else endpoints


def kernel_rules(mode: str, services: int, endpoints: Sequence[str]) -> Iterator[str]:
    """What kube-proxy would write for these Services: one text a transaction."""
    ports = [
        kube_proxy.Port(
            service=f"bench/s{number}",
            name=name,
            protocol=protocol.lower(),
            address=str(FIRST_IP + number),
            port=port,
            endpoints=endpoints_of(protocol, endpoints),
            target=port,
        )
        for number in range(services)
        for name, protocol, port in ports_of(number)
    ]
    if mode == IPTABLES:
        yield kube_proxy.iptables(ports, "10.202.0.0/16")
        return
    yield "table ip kube-proxy {}\ndelete table ip kube-proxy\n"
    yield from kube_proxy.nftables(ports, "10.202.0.0/16", "10.96.0.0/12")


def our_program(services: int, endpoints: Sequence[str]) -> Program:
    """What Dunlin's planner and compiler make of the same Services."""
    state = State(Cluster(pod_cidrs=(), service_cidrs=()))
    facts: list[ServiceFact | EndpointSliceFact] = []
    for number in range(services):
        ports = ports_of(number)
        facts.append(
            ServiceFact(
                namespace="bench",
                name=f"s{number}",
                cluster_ips=(FIRST_IP + number,),
                ports=tuple(ServicePort(name=n, protocol=p, port=port) for n, p, port in ports),
            )
        )
        facts += [
            EndpointSliceFact(
                namespace="bench",
                name=f"s{number}-{name}",
                service=f"s{number}",
                ports=(EndpointPort(name=name, protocol=protocol, port=port),),
                endpoints=tuple(
                    Endpoint(ip=ip_address(ip), node="n1")
                    for ip in endpoints_of(protocol, endpoints)
                ),
            )
            for name, protocol, port in ports
        ]
    step(state, [Upserted(fact) for fact in facts])
    planned = intents(state).values()
    parts = [compile_intent(i, None) for i in planned if isinstance(i, ServicePortIntent)]
    return Program(
        tuple(flow for part in parts for flow in part.flows),
        tuple(group for part in parts for group in part.groups),
    )


@dataclass(frozen=True, slots=True)
class Pods:
    """A client and a server behind one router; `endpoints`: all addresses of the server."""

    client: Path
    server: Path
    endpoints: Sequence[str]


class Kernel:
    """A namespace that routes and translates as a node with kube-proxy."""

    def __init__(self, made: baseline.Networks, number: int, mode: str) -> None:
        self.mode = mode
        self._node = made.make(f"k{number}")
        netns.run_in(self._node, lambda: links.sysctl("ipv4/ip_forward", "1"))
        places = []
        for name, block in (("client", 1), ("server", 2)):
            place = made.make(f"k{number}{name}")
            made.join(place, f"10.202.{block}.2/24", self._node, name, f"10.202.{block}.1/24")
            made.route(place, "default", f"10.202.{block}.1")
            places.append(place)
        client, server = places
        self.pods = Pods(client, server, more_addresses(server, "10.202.2.2"))

    def load(self, services: int) -> None:
        """These Services and no others."""
        command = {IPTABLES: ["iptables-legacy-restore"], NFTABLES: ["nft", "-f", "-"]}[self.mode]
        for text in kernel_rules(self.mode, services, self.pods.endpoints):
            output(self._node, command, text, limit_s=LOAD_LIMIT_S)

    def forget(self) -> None:
        """It has no caches to empty."""


class Switch:
    """The switch of a lab's node; its flows stay when everything else of the lab is dead."""

    def __init__(self, cluster: lab.Lab) -> None:
        node = cluster.nodes[0]
        pods = cluster.pods(client=node["name"], server=node["name"])
        cluster.wait()
        for service in CONTROL_PLANE:
            cluster.dunlin("lab", "kill", service)
        self._rundir = node["ovs_rundir"]
        server, address = Path(pods["server"]["netns"]), pods["server"]["ips"][0]
        self.pods = Pods(Path(pods["client"]["netns"]), server, more_addresses(server, address))
        self._write(self._server(node["name"], address))

    def _server(self, node: str, address: str) -> Program:
        """The server's Pod, with more addresses than ipam would give it."""
        guard = rf"in_port=(\d+),arp_spa={re.escape(address)},.*arp_sha=([0-9a-f:]+)"
        found = re.search(guard, self._ofctl("dump-flows", "br-int", "table=0"))
        if found is None:
            raise RuntimeError(f"no spoof guard of {address}")
        ips = tuple(map(ip_address, self.pods.endpoints))
        pod = EndpointIntent(
            scope=node, key="bench/server/eth0", pod_namespace="bench", pod_name="server",
            ofport=int(found[1]), mac=MacAddress(found[2]), ips=ips,
        )  # fmt: skip
        subject = PolicySubjectIntent(scope=node, key="bench/server", ips=ips)
        return compile_intent(pod, None) + compile_intent(subject, None)

    def load(self, services: int) -> None:
        """These Services and no others."""
        cookie = OWNER << 56 | KINDS["service"] << 48
        self._ofctl("del-flows", "br-int", f"cookie={cookie:#x}/0xffff000000000000")
        self._ofctl("del-groups", "br-int")
        self._write(our_program(services, self.pods.endpoints))

    def _write(self, program: Program) -> None:
        groups = "".join(f"{group_text(group)}\n" for group in program.groups)
        flows = "".join(f"{flow_text(flow)}\n" for flow in program.flows)
        for command, text in (("add-groups", groups), ("add-flows", flows)):
            if text:
                self._ofctl("--bundle", command, "br-int", "-", text=text)

    def forget(self) -> None:
        """No megaflow: what comes next is looked for in the flow tables."""
        self._run("ovs-appctl", "revalidator/purge")

    def megaflows(self) -> int:
        """How many there are."""
        return len(self._run("ovs-appctl", "dpctl/dump-flows").splitlines())

    def _ofctl(self, *words: str, text: str = "") -> str:
        return self._run("ovs-ofctl", "-O", "OpenFlow15", *words, text=text)

    def _run(self, *command: str, text: str = "") -> str:
        env = {**os.environ, "OVS_RUNDIR": self._rundir}
        done = subprocess.run(
            command, input=text, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr[-500:]}")
        return done.stdout


Way = Kernel | Switch


def more_addresses(place: Path, first: str) -> list[str]:
    """So many endpoints in one Pod."""
    found = [str(ip_address(first) + i * 16) for i in range(ENDPOINTS)]

    def add() -> None:
        # A closed connection's (address, port) may come again by another Service at once.
        links.sysctl("ipv4/tcp_max_tw_buckets", "0")
        with links.route() as ipr:
            links.up(ipr, "eth0", tuple(ip_interface(f"{ip}/32") for ip in found[1:]))

    netns.run_in(place, add)
    return found


class Bench:
    """All ways with the same Services."""

    def __init__(self, load: Tools, ways: Mapping[str, Way], seconds: float) -> None:
        self._load, self._ways, self._seconds = load, ways, seconds
        self.failed = dict.fromkeys(ways, 0)
        """Connections that nobody answered within three seconds."""

    def measure(self, name: str, services: int) -> Mapping[str, float]:
        """Every figure of one way, one after the other."""
        way, seconds = self._ways[name], self._seconds
        cold: list[float] = []
        while len(cold) < COLD_SAMPLES:
            way.forget()
            cold += self._each(name, 0, services, min(services, COLD_SAMPLES))["each_us"]
        self._each(name, 0, services, min(services, WARM))
        warm = self._each(name, seconds, services)
        address = str(FIRST_IP)
        rr = self._load.load(way.pods.client, "rr", address, str(seconds))
        udp = self._load.load(way.pods.client, "udp", address, str(seconds), "18")
        tcp = self._load.stream(way.pods.client, address, seconds)
        values = (
            percentile(cold, 0.5),
            percentile(cold, 0.9),
            warm["p50_us"],
            warm["p99_us"],
            warm["per_s"],
            tcp["sum_received"]["bits_per_second"] / 1e9,
            rr["p50_us"],
            udp["received_per_s"],
        )
        return {metric.name: value for metric, value in zip(METRICS, values, strict=True)}

    def _each(self, name: str, seconds: float, services: int, count: int = 0) -> dict[str, Any]:
        words = (str(seconds), str(services), str(count))
        client = self._ways[name].pods.client
        found = self._load.load(client, "each", str(FIRST_IP), *words)
        self.failed[name] += found["failed"]
        return found

    def settle(self) -> None:
        """Servers listen, neighbours are known."""
        for name in self._ways:
            eventually(partial(self._each, name, 0, 1, 1))
        self.failed = dict.fromkeys(self._ways, 0)


def eventually(act: Callable[[], object]) -> None:
    """Once without an error, within 20 s."""
    deadline = time.monotonic() + 20
    while True:
        try:
            act()
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def run(options: Options) -> list[Table]:
    """Raises Unavailable."""
    missing = [name for name in ("nft", "iptables-legacy-restore") if shutil.which(name) is None]
    if missing:
        raise Unavailable(f"no {', '.join(missing)} (Debian: nftables, iptables)")
    sizes = SIZES[:2] if options.quick else SIZES
    with ExitStack() as stack:
        load = stack.enter_context(tools())
        made = stack.enter_context(baseline.networks())
        ways: dict[str, Way] = {
            mode: Kernel(made, number, mode) for number, mode in enumerate((IPTABLES, NFTABLES))
        }
        ways[DUNLIN] = Switch(stack.enter_context(lab.running(1)))
        for way in ways.values():
            baseline.widen_ports(way.pods.client)
            load.serve(stack, way.pods.server)
        bench = Bench(load, ways, 0.5 if options.quick else 1.5)
        return [one_size(bench, ways, services, options) for services in sizes]


def one_size(bench: Bench, ways: Mapping[str, Way], services: int, options: Options) -> Table:
    """All ways in turns, with so many Services."""
    table = Table(f"{services:,} Services of {ENDPOINTS} endpoints", METRICS, IPTABLES)
    took = []
    for name, way in ways.items():
        options.progress(f"{table.title}: loading {name}")
        started = time.monotonic()
        way.load(services)
        took.append(f"{name} {time.monotonic() - started:.1f} s")
    bench.settle()
    turns = {name: partial(bench.measure, name, services) for name in ways}
    take_turns(turns, table, options.rounds(3), options.progress)
    switch = ways[DUNLIN]
    assert isinstance(switch, Switch)
    table.notes += [
        f"without an answer in 3 s: {', '.join(f'{n} {c}' for n, c in bench.failed.items())}",
        f"written from text: {', '.join(took)}; megaflows after it all: {switch.megaflows()}",
        "client, router and server share this machine's cores",
    ]
    return table
