"""
TCP, request/response and UDP between Pods of a lab, against a Linux bridge and routed veth.

The lab is as `dunlin lab up` makes it (datapath, port type and TSO as it chooses), with 1,000 more
Services loaded. All traffic is between network namespaces of this machine: client, switches and
server share its cores, so the figures are ratios of whole paths, not what a switch alone can do.
"""

import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from bench import baseline, lab
from bench.load import LOAD_PORT, STREAM_PORT, Place, Tools, tools
from bench.measure import Metric, Options, Table, take_turns

SERVICES = 1_000
METRICS = (
    Metric("TCP", "Gbit/s", lower_is_better=False, digits=2),
    Metric("TCP retransmits", "", digits=0),
    Metric("request/response p50", "us"),
    Metric("request/response p99", "us"),
    Metric("connect+request+close", "1/s", lower_is_better=False, digits=0),
    Metric("connections without an answer in 3 s", "", digits=0),
    Metric("UDP 18 bytes received", "1/s", lower_is_better=False, digits=0),
)


def measure(load: Tools, place: Place, address: str, seconds: float) -> Mapping[str, float]:
    """Everything of one path, one after the other."""
    rr = load.load(place, "rr", address, str(seconds))
    crr = load.load(place, "crr", address, str(seconds))
    udp = load.load(place, "udp", address, str(seconds), "18")
    tcp = load.stream(place, address, seconds)
    values = (
        tcp["sum_received"]["bits_per_second"] / 1e9,
        tcp["sum_sent"]["retransmits"],
        rr["p50_us"],
        rr["p99_us"],
        crr["per_s"],
        crr["failed"],
        udp["received_per_s"],
    )
    return {metric.name: value for metric, value in zip(METRICS, values, strict=True)}


@dataclass(frozen=True, slots=True)
class Way:
    """From a namespace to an address."""

    table: str
    name: str
    client: Place
    address: str


SAME, CROSS = "Pods of one node", "Pods of two nodes"
BRIDGE, ROUTED, ROUTED2 = "Linux bridge", "routed veth", "routed veth, two nodes on a Linux bridge"
POD, SERVICE = "Dunlin, Pod IP", "Dunlin, ClusterIP"
CROWD = [f"10.244.255.{number}" for number in range(10, 20)]
"""Endpoints that nobody calls."""
SERVICE_PORTS = [
    {"name": "stream", "port": STREAM_PORT, "targetPort": STREAM_PORT, "protocol": "TCP"},
    {"name": "load", "port": LOAD_PORT, "targetPort": LOAD_PORT, "protocol": "TCP"},
    {"name": "load-udp", "port": LOAD_PORT, "targetPort": LOAD_PORT, "protocol": "UDP"},
]


def lab_ways(cluster: lab.Lab, services: int) -> tuple[list[Way], list[str]]:
    """Four ways, and the namespaces where servers must be."""
    here, there = (node["name"] for node in cluster.nodes[:2])
    pods = cluster.pods(client=here, near=here, far=there)
    cluster.crowd(services, CROWD)
    client = pods["client"]["netns"]
    ways = []
    for table, name in ((SAME, "near"), (CROSS, "far")):
        address = cluster.service(name, name, SERVICE_PORTS)
        ways += [
            Way(table, POD, client, pods[name]["ips"][0]),
            Way(table, SERVICE, client, address),
        ]
    cluster.wait()
    return ways, [pods["near"]["netns"], pods["far"]["netns"]]


def run(options: Options) -> list[Table]:
    """Raises Unavailable."""
    seconds = 0.5 if options.quick else 1.5
    services = SERVICES // 10 if options.quick else SERVICES
    tables = {SAME: Table(SAME, METRICS, BRIDGE), CROSS: Table(CROSS, METRICS, ROUTED2)}
    with ExitStack() as stack:
        load = stack.enter_context(tools())
        cluster = stack.enter_context(lab.running(2))
        made = stack.enter_context(baseline.networks())
        options.progress(f"loading {services} Services")
        b1, b2 = made.bridged_pair()
        r1, r2, r3 = made.routed()
        more, servers = lab_ways(cluster, services)
        ways = [
            Way(SAME, BRIDGE, b1.netns, b2.ip),
            Way(SAME, ROUTED, r1.netns, r2.ip),
            Way(CROSS, ROUTED2, r1.netns, r3.ip),
            *more,
        ]
        for place in {str(way.client) for way in ways}:
            baseline.widen_ports(place)
        places: list[Place] = [*servers, b2.netns, r2.netns, r3.netns]
        for server in places:
            load.serve(stack, server)
        _settle(load, ways)
        for name, table in tables.items():
            mine = [way for way in ways if way.table == name]
            turns = {
                way.name: partial(measure, load, way.client, way.address, seconds) for way in mine
            }
            take_turns(turns, table, options.rounds(3), options.progress)
            table.notes.append(
                f"lab with datapath {cluster.datapath}, {services} Services loaded; client, "
                "switches and server share this machine's cores"
            )
    return list(tables.values())


def _settle(load: Tools, ways: list[Way]) -> None:
    """Every path works before the first is measured: servers listen, neighbours are known."""
    deadline = time.monotonic() + 20
    for way in ways:
        while True:
            try:
                measure(load, way.client, way.address, 0.05)
                break
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
