"""
What a kernel does without Open vSwitch, in network namespaces of the bench's own.

    bridge:  pod1 -veth- (Linux bridge) -veth- pod2
    routed:  pod1 -veth- node1 (router) -veth- pod2,  node1 -(Linux bridge)- node2 -veth- pod3
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_interface
from pathlib import Path
from typing import Any

from dunlin_lab import links, netns

MTU_BYTES = 1500


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace that plays a Pod, and its address."""

    netns: Path
    ip: str


class Networks:
    """Namespaces that are made as they are asked for."""

    def __init__(self) -> None:
        self._prefix = f"dunlin-bench-{os.getpid()}"
        self.names: list[str] = []

    def make(self, name: str) -> Path:
        """A namespace with its loopback up."""
        full = f"{self._prefix}-{name}"
        path = netns.create(full)
        self.names.append(full)
        netns.run_in(path, lambda: self._up("lo"))
        return path

    @staticmethod
    def _up(ifname: str, *addresses: str) -> None:
        with links.route() as ipr:
            links.up(ipr, ifname, tuple(map(ip_interface, addresses)))

    def join(
        self, inside: Path, address: str, outside: Path, ifname: str, theirs: str = ""
    ) -> None:
        """A veth pair: eth0 with `address` inside, `ifname` (with the address `theirs`) outside."""

        def make() -> None:
            with links.route() as ipr:
                links.veth(ipr, ifname, "eth0", inside, MTU_BYTES)
            self._up(ifname, *([theirs] if theirs else []))

        netns.run_in(outside, make)
        netns.run_in(inside, lambda: self._up("eth0", address))

    @staticmethod
    def route(place: Path, destination: str, gateway: str) -> None:
        """A route through `gateway`."""

        def add() -> None:
            with links.route() as ipr:
                ipr.route("add", dst=destination, gateway=gateway)

        netns.run_in(place, add)

    @staticmethod
    def bridge(place: Path, *ifnames: str) -> None:
        """A Linux bridge of these links."""

        def make() -> None:
            with links.route() as ipr:
                index = links.bridge(ipr, "br0")
                for ifname in ifnames:
                    links.enslave(ipr, ifname, index)

        netns.run_in(place, make)

    def bridged_pair(self) -> tuple[Place, Place]:
        """Two Pods on a Linux bridge."""
        switch = self.make("br")
        places = []
        for number in (1, 2):
            pod = self.make(f"b{number}")
            self.join(pod, f"10.201.0.{number}/24", switch, f"p{number}")
            places.append(Place(pod, f"10.201.0.{number}"))
        self.bridge(switch, "p1", "p2")
        return places[0], places[1]

    def routed(self) -> tuple[Place, Place, Place]:
        """Two Pods on one router, one on another; a Linux bridge joins the routers."""
        fabric = self.make("fab")
        pods: list[Place] = []
        for number, count in ((1, 2), (2, 1)):
            node = self.make(f"n{number}")
            netns.run_in(node, lambda: links.sysctl("ipv4/ip_forward", "1"))
            self.join(node, f"10.203.0.{number}/24", fabric, f"n{number}")
            for pod in range(1, count + 1):
                place = self.make(f"r{number}{pod}")
                subnet = f"10.202.{number * 10 + pod}"
                self.join(place, f"{subnet}.2/24", node, f"pod{pod}", f"{subnet}.1/24")
                self.route(place, "default", f"{subnet}.1")
                pods.append(Place(place, f"{subnet}.2"))
        self.bridge(fabric, "n1", "n2")
        for number, other in ((1, 2), (2, 1)):
            node = netns.path_of(f"{self._prefix}-n{number}")
            for pod in (1, 2):
                self.route(node, f"10.202.{other * 10 + pod}.0/24", f"10.203.0.{other}")
        return pods[0], pods[1], pods[2]


@contextmanager
def networks() -> Iterator[Networks]:
    """Namespaces, gone afterwards with all that is in them."""
    made = Networks()
    try:
        yield made
    finally:
        for name in made.names:
            netns.delete(name)


def widen_ports(place: Path | str) -> None:
    """A client that opens thousands of connections a second needs all ports, and soon again."""

    def write() -> None:
        settings: dict[str, Any] = {"ip_local_port_range": "1024 65535", "tcp_tw_reuse": "1"}
        for name, value in settings.items():
            links.sysctl(f"ipv4/{name}", value)

    netns.run_in(place, write)
