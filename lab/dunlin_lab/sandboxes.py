"""
Pod sandboxes: namespace, CNI attachment and responder of each, with a record of each on disk.

The record is written before the namespace is made, so a kubelet that is killed at any moment finds
all of them again.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from dunlin_lab import cni, links, netns
from dunlin_lab.kubelet_core import PodView, Sandbox, rfc3339, sandbox_id
from dunlin_lab.paths import LabPaths
from dunlin_lab.responder import Port, Request, ResponderClient, ResponderError
from dunlin_lab.state import Journal, write_atomically

OUTSIDE = "outside"
"""Id and Pod name of the world beyond the cluster at the responder."""
ADDS_MAX = 8
"""CNI ADDs of one node at the same time."""


@dataclass(slots=True)
class Node:
    """One node as its kubelet knows it."""

    name: str
    zone: str
    ips: tuple[str, ...]
    """Node addresses, IPv4 first."""
    plugin: cni.Plugin
    adds: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(ADDS_MAX))
    lab: str = ""
    """Name of the lab, for the Node's label."""
    collected: asyncio.Event = field(default_factory=asyncio.Event)
    """Set after the CNI GC of this process: an ADD beside a GC could be collected by it."""


class Sandboxes:
    """Makes and removes the sandboxes of all nodes of this lab."""

    def __init__(self, paths: LabPaths, responder: ResponderClient) -> None:
        self._paths = paths
        self._responder = responder
        self._journal = Journal(paths.journal)

    def load(self) -> tuple[tuple[Sandbox, ...], tuple[str, ...]]:
        """(sandboxes, errors): the records on disk; one that does not parse is named and left."""
        return load(self._paths)

    def save(self, sandbox: Sandbox) -> None:
        """Write one record."""
        write_atomically(self._record(sandbox), msgspec.json.encode(sandbox))

    def usable(self, sandbox: Sandbox) -> bool:
        """False for one that was left half made, or whose namespace is gone."""
        if sandbox.stage == "adding":
            return False
        return netns.exists(sandbox.netns)

    def draft(self, pod: PodView, attempt: int) -> Sandbox:
        """The record of a sandbox that is about to be made."""
        identity = sandbox_id(self._paths.name, pod.uid, attempt)
        return Sandbox(
            id=identity,
            uid=pod.uid,
            namespace=pod.namespace,
            name=pod.name,
            node=pod.node,
            netns=self._paths.node_netns(pod.node)
            if pod.host_network
            else self._paths.pod_netns(identity),
            host_network=pod.host_network,
            attempt=attempt,
            stage="adding",
        )

    async def create(self, node: Node, draft: Sandbox) -> Sandbox:
        """
        Make the namespace and attach it; a Pod on the host's network needs neither.

        Returns:
            The same sandbox, `attached`.
        Raises:
            CniError, NetnsError, OSError: nothing of the attempt is left but its record.
        """
        if draft.host_network:
            return msgspec.structs.replace(draft, stage="attached", ips=node.ips, started=rfc3339())
        self._journal.will_make("netns", draft.netns)
        try:
            await asyncio.to_thread(_make_namespace, draft.netns)
            await node.collected.wait()
            async with node.adds:
                ips = await node.plugin.add(self._attachment(draft))
        except (cni.CniError, netns.NetnsError, OSError):
            await self._undo(node, draft)
            raise
        return msgspec.structs.replace(draft, stage="attached", ips=ips, started=rfc3339())

    async def serve(self, node: Node, pod: PodView, sandbox: Sandbox) -> tuple[str, ...]:
        """
        Have the Pod's ports answered.

        Returns:
            Ports that could not be opened, named; the others answer.
        Raises:
            ResponderError: it does not answer.
        """
        reply = await self._responder.call(
            Request(
                op="serve",
                id=sandbox.id,
                netns=str(netns.path_of(sandbox.netns)),
                pod=pod.name,
                node=node.name,
                ports=pod.ports,
            )
        )
        return reply.errors

    async def serve_outside(self, netns_path: str) -> None:
        """The world beyond the cluster answers on TCP and UDP port 80; what fails is printed."""
        ports = (Port("TCP", 80), Port("UDP", 80))
        request = Request("serve", id=OUTSIDE, netns=netns_path, pod=OUTSIDE, node="", ports=ports)
        try:
            reply = await self._responder.call(request)
        except ResponderError as error:
            print(f"kubelet: {error}", flush=True)
            return
        for text in reply.errors:
            print(f"kubelet: {text}", flush=True)

    async def drain(self, sandbox: Sandbox) -> None:
        """Ask HTTP clients to go elsewhere. Raises ResponderError."""
        await self._responder.call(Request("drain", id=sandbox.id))

    async def remove(self, node: Node, sandbox: Sandbox) -> None:
        """
        Stop answering, detach, remove the namespace, then the record.

        Raises:
            CniError, ResponderError, NetnsError: the record stays; try again.
        """
        await self._responder.call(Request("stop", id=sandbox.id))
        if not sandbox.host_network:
            await node.plugin.delete(self._attachment(sandbox))
            await asyncio.to_thread(netns.delete, sandbox.netns)
        self._record(sandbox).unlink(missing_ok=True)

    def discard(self, sandbox: Sandbox) -> None:
        """Forget the record of a failed attempt, which has nothing else."""
        self._record(sandbox).unlink(missing_ok=True)

    async def served(self) -> dict[str, str]:
        """Ids that the responder serves now -> namespace. Raises ResponderError."""
        reply = await self._responder.call(Request("list"))
        return {served.id: served.netns for served in reply.served}

    async def _undo(self, node: Node, draft: Sandbox) -> None:
        """After a failed ADD: DEL, as the specification asks, and the namespace."""
        try:
            await node.plugin.delete(self._attachment(draft))
        except cni.CniError as error:
            # The ADD's own error is what is reported; GC or the next DEL has to clean up.
            print(f"kubelet: after a failed ADD: {error}", flush=True)
        await asyncio.to_thread(netns.delete, draft.netns)

    def _attachment(self, sandbox: Sandbox) -> cni.Attachment:
        return cni.Attachment(
            container_id=sandbox.id,
            netns=netns.path_of(sandbox.netns),
            namespace=sandbox.namespace,
            name=sandbox.name,
            uid=sandbox.uid,
        )

    def _record(self, sandbox: Sandbox) -> Path:
        return self._paths.sandboxes / f"{sandbox.id}.json"


def load(paths: LabPaths) -> tuple[tuple[Sandbox, ...], tuple[str, ...]]:
    """(sandboxes, errors): the records on disk; one that does not parse is named and left."""
    found, errors = [], []
    for path in sorted(paths.sandboxes.glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Sandbox))
        except FileNotFoundError:
            # Removed between the listing and the reading.
            continue
        except msgspec.DecodeError as error:
            errors.append(f"{path}: {error}")
    return tuple(found), tuple(errors)


def _make_namespace(name: str) -> None:
    """A Pod's namespace as a runtime hands it to CNI: lo up, addresses usable at once."""
    path = netns.create(name)

    def inside() -> None:
        for where in ("all", "default"):
            links.sysctl(f"ipv6/conf/{where}/accept_dad", "0")
            links.sysctl(f"ipv6/conf/{where}/accept_ra", "0")
        with links.route() as ipr:
            links.up(ipr, "lo")

    netns.run_in(path, inside)
