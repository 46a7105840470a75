"""
The kubelet of one node, alone in a container beside the node's agent (compose/).

    python -m dunlin_lab.solo

What it needs is in the environment: KUBECONFIG, DUNLIN_NODE, DUNLIN_NODE_IPS (comma-separated),
DUNLIN_AGENT_SOCKET, DUNLIN_CNI. Pods' namespaces are in /run/netns, which the agent's container
must see as well (a bind mount with propagation, as kubelet's and a CNI daemon's in a cluster).
SIGTERM removes the Pods' namespaces: nothing of them may outlive `docker compose down`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import uvloop

from dunlin_lab import cni, netns
from dunlin_lab.kubeapi import KubeApi
from dunlin_lab.kubelet import Kubelet
from dunlin_lab.paths import LabPaths
from dunlin_lab.responder import ResponderClient
from dunlin_lab.runner import ensure_responder
from dunlin_lab.sandboxes import Node, Sandboxes

OWN_NETNS = Path("/proc/self/ns/net")


class SoloError(ValueError):
    """A variable is missing or cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where this kubelet is."""

    node: str
    ips: tuple[str, ...]
    kubeconfig: Path
    agent_socket: Path
    cni: Path


def place_from(environ: Mapping[str, str]) -> Place:
    """
    What the environment says.

    Raises:
        SoloError: a variable is missing, or an address is none.
    """
    names = ("DUNLIN_NODE", "DUNLIN_NODE_IPS", "KUBECONFIG", "DUNLIN_AGENT_SOCKET", "DUNLIN_CNI")
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise SoloError(f"{', '.join(missing)}: not set")
    try:
        ips = tuple(str(ip_address(part)) for part in environ["DUNLIN_NODE_IPS"].split(","))
    except ValueError as error:
        raise SoloError(f"DUNLIN_NODE_IPS={environ['DUNLIN_NODE_IPS']!r}: {error}") from error
    return Place(
        node=environ["DUNLIN_NODE"],
        ips=ips,
        kubeconfig=Path(environ["KUBECONFIG"]),
        agent_socket=Path(environ["DUNLIN_AGENT_SOCKET"]),
        cni=Path(environ["DUNLIN_CNI"]),
    )


def node_of(place: Place) -> Node:
    """The node as its kubelet knows it."""
    conf = {
        "cniVersion": "1.1.0",
        "name": "dunlin",
        "type": place.cni.name,
        "agentSocket": str(place.agent_socket),
    }
    return Node(place.node, "zone-1", place.ips, cni.Plugin(place.cni, OWN_NETNS, conf))


def forget_pods(paths: LabPaths) -> int:
    """Remove the namespaces of this node's Pods; how many."""
    prefix = paths.pod_netns("0" * 10).removesuffix("0" * 10)
    mine = [name for name in netns.names() if name.startswith(prefix)]
    return sum(netns.delete(name) for name in mine)


async def run(place: Place, paths: LabPaths) -> None:
    """Until SIGTERM or SIGINT."""
    while not place.kubeconfig.is_file():
        print(f"kubelet {place.node}: waiting for {place.kubeconfig}", flush=True)
        await asyncio.sleep(1.0)
    api = KubeApi.from_kubeconfig(place.kubeconfig)
    sandboxes = Sandboxes(paths, ResponderClient(paths.responder_socket))
    kubelet = Kubelet(api, {place.node: node_of(place)}, sandboxes)
    running = asyncio.create_task(kubelet.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        print(f"kubelet {place.node}: {forget_pods(paths)} Pods removed", flush=True)
    finally:
        await api.close()


def main() -> int:
    """Entry point."""
    try:
        place = place_from(os.environ)
        paths = LabPaths.named(f"c-{place.node}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    ensure_responder(paths)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(place, paths))
    return 0


if __name__ == "__main__":
    sys.exit(main())
