"""
The node runner: plays the kubelet of every node of a lab, and sees that the responder runs.

    python -m dunlin_lab.runner LAB

Everything it needs is in the lab's state (state.LabState). Its end leaves Pods and responder as
they are; the next runner takes them over.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path

import uvloop

from dunlin_lab import cni, procs
from dunlin_lab.binder import Binder
from dunlin_lab.kubeapi import KubeApi
from dunlin_lab.kubelet import Kubelet
from dunlin_lab.kubelet_nodes import PODS_MAX
from dunlin_lab.paths import LabPaths
from dunlin_lab.responder import ResponderClient
from dunlin_lab.sandboxes import Node, Sandboxes
from dunlin_lab.state import LabState, NodeState, load_state

CNI_ENV = "DUNLIN_CNI"
"""Path of the CNI executable; default: build/bin/dunlin-cni of the checkout."""
BIND_ENV = "DUNLIN_LAB_BIND"
""""1": bind Pods that have no node, where the API server comes without a scheduler."""
WITHOUT_KUBELET = "without_kubelet"
"""In the lab's state: nodes, with commas, that somebody else plays kubelet of."""
RESPONDER = "responder@0"

_CHECKOUT = Path(__file__).resolve().parents[2]


def node_of(paths: LabPaths, state: NodeState, binary: Path) -> Node:
    """A node as its kubelet knows it."""
    conf = {
        "cniVersion": "1.1.0",
        "name": "dunlin",
        "type": binary.name,
        "agentSocket": str(paths.agent_socket(state.name)),
    }
    return Node(
        name=state.name,
        zone=f"zone-{state.index}",
        ips=state.ips,
        plugin=cni.Plugin(binary, Path(state.netns), conf),
        lab=paths.name,
    )


def ensure_responder(paths: LabPaths) -> None:
    """Start the responder unless it runs; it outlives the runner, so connections do too."""
    registry = procs.Processes(paths)
    record = registry.find(RESPONDER)
    if record is None or not procs.is_alive(record):
        argv = [sys.executable, "-m", "dunlin_lab.responder", str(paths.responder_socket)]
        registry.start(RESPONDER, argv)


def _binders(api: KubeApi, state: LabState) -> list[Coroutine[None, None, None]]:
    """The binder, if this lab wants one."""
    if os.environ.get(BIND_ENV) != "1":
        return []
    names = frozenset(node.name for node in state.nodes)
    return [Binder(api, names, PODS_MAX).run()]


async def run(paths: LabPaths, state: LabState) -> None:
    """Until SIGTERM or SIGINT."""
    default = _CHECKOUT / "build" / "bin" / "dunlin-cni"
    binary = Path(os.environ.get(CNI_ENV) or default)
    foreign = state.extra.get(WITHOUT_KUBELET, "").split(",")
    nodes = {
        node.name: node_of(paths, node, binary) for node in state.nodes if node.name not in foreign
    }
    api = KubeApi.from_kubeconfig(Path(state.kubeconfig))
    kubelet = Kubelet(
        api,
        nodes,
        Sandboxes(paths, ResponderClient(paths.responder_socket)),
        outside=state.outside.netns,
    )
    running = asyncio.gather(kubelet.run(), *_binders(api, state))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, running.cancel)
    try:
        await running
    except asyncio.CancelledError:
        print("runner: stopped; Pods stay", flush=True)
    finally:
        await api.close()


def main(argv: list[str]) -> int:
    """Entry point."""
    if len(argv) != 2:
        print("usage: python -m dunlin_lab.runner LAB", file=sys.stderr)
        return 2
    paths = LabPaths.named(argv[1])
    state = load_state(paths)
    ensure_responder(paths)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(paths, state))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
