"""
What the node's own processes pay for the rules that lead them to Services.

New TCP connections a second over loopback, which no rule is for, and to the node's own address at a
port outside the NodePort range: without rules, with those of NodePorts, and with those of 100 and
1,000 different ports of external IPs. One namespace each, all of them in turns.
"""

import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from ipaddress import ip_address

from bench.measure import Metric, Options, Table, Unavailable, take_turns
from dunlin.events.facts import Protocol
from dunlin_agent.steering.core import TABLE_BASE, Rule, Steered, SteeredRoute
from dunlin_agent.steering.kernel import SteeringKernel
from dunlin_lab import netns

OWN = ip_address("192.0.2.5")
VIP = ip_address("198.51.100.7")
RANGE = (30000, 32767)
SECONDS = 1.0


def run(options: Options) -> list[Table]:
    """One table: connections a second."""
    if os.geteuid() != 0:
        raise Unavailable("needs root for network namespaces")
    table = Table(
        "connections of a node's own processes, one after the other",
        [Metric("loopback", "1/s", lower_is_better=False, digits=0),
         Metric("own address", "1/s", lower_is_better=False, digits=0)],
        base="without rules",
    )  # fmt: skip
    ways = {
        "without rules": Steered(),
        "NodePorts, three protocols": steered(0),
        "and 100 ports of external IPs": steered(100),
        "and 1,000 ports of external IPs": steered(1000),
    }
    with hosts(ways) as places:
        turns = {name: partial(one_round, place) for name, place in places.items()}
        take_turns(turns, table, options.rounds(7), options.progress)
    return [table]


def steered(ports: int) -> Steered:
    """NodePorts, and so many different ports of one external IP."""
    rules = {Rule(4, protocol, RANGE, TABLE_BASE) for protocol in Protocol}
    routes = {SteeredRoute(TABLE_BASE, OWN, OWN)}
    for port in range(1000, 1000 + ports):
        number = TABLE_BASE | 6 << 16 | port
        rules.add(Rule(4, Protocol.TCP, (port, port), number))
        routes.add(SteeredRoute(number, VIP, OWN))
    return Steered(frozenset(rules), frozenset(routes))


@contextmanager
def hosts(ways: dict[str, Steered]) -> Iterator[dict[str, str]]:
    """A namespace for each way."""
    made: dict[str, str] = {}
    try:
        for name, wanted in ways.items():
            place = f"bench-{uuid.uuid4().hex[:6]}"
            netns.create(place)
            made[name] = place
            for words in (
                "link set lo up",
                "link add dunlin-gw0 type veth peer name beyond",
                "link set dunlin-gw0 up",
                "link set beyond up",
                f"addr add {OWN}/24 dev beyond",
            ):
                subprocess.run(["ip", "-n", place, *words.split()], check=True, timeout=10)
            kernel = SteeringKernel("dunlin-gw0", netns.path_of(place))
            kernel.write(wanted, kernel.read())
            kernel.close()
        yield {name: str(netns.path_of(place)) for name, place in made.items()}
    finally:
        for place in made.values():
            netns.delete(place)


def one_round(place: str) -> dict[str, float]:
    """Both figures of one way."""
    return {
        "loopback": netns.run_in(place, partial(rate, "127.0.0.1")),
        "own address": netns.run_in(place, partial(rate, str(OWN))),
    }


def rate(address: str) -> float:
    """Connections made and closed a second."""
    with socket.create_server((address, 8080)) as server:
        began, count = time.perf_counter(), 0
        while time.perf_counter() - began < SECONDS:
            with socket.create_connection((address, 8080)):
                server.accept()[0].close()
                count += 1
        return count / (time.perf_counter() - began)
