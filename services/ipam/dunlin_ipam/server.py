"""
Requests of agents: `rpc.ipam.allocate|release|blocks`, answered by any replica.

Two replicas may serve the same interface at once (an agent that asks again). Each writes its choice
by compare-and- set, reads the stream up to its own line, and decides again: both then see both
lines, and keep the first.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Bus, BusUnavailable, Subscription
from dunlin.events.rpc import (
    Allocated,
    AllocateRequest,
    Blocks,
    BlocksRequest,
    Failure,
    Released,
    ReleaseRequest,
)
from dunlin.model.addresses import IPAddress
from dunlin.service.metrics import Metrics
from dunlin_ipam.core import requests
from dunlin_ipam.core.blocks import ip_order
from dunlin_ipam.core.requests import Context, Need, Refused
from dunlin_ipam.observer import Observer
from dunlin_ipam.view import View

log = structlog.get_logger(__name__)

QUEUE = "ipam"
ATTEMPTS = 64

Decide: TypeAlias = Callable[[Context], Any]


class NodeLocks:
    """One lock a node, for as long as somebody wants it."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    @asynccontextmanager
    async def hold(self, node: str) -> AsyncIterator[None]:
        """Within this process one at a time works on a node's lines: less to be overtaken by."""
        lock, users = self._locks.get(node, (asyncio.Lock(), 0))
        self._locks[node] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(node)
            if users > 1:
                self._locks[node] = (lock, users - 1)


class Server:
    """Answers; all knowledge is in `view`."""

    def __init__(
        self,
        bus: Bus,
        view: View,
        locks: NodeLocks,
        metrics: Metrics,
        observer: Observer,
        *,
        agents_grace_ms: int,
    ) -> None:
        self._bus = bus
        self._view = view
        self._locks = locks
        self._metrics = metrics
        self._observer = observer
        self._agents_grace_ms = agents_grace_ms
        self._served: list[Subscription] = []

    async def start(self) -> None:
        """Serve, as one of the queue group of all replicas."""
        for operation, handle in (
            ("allocate", self._handler("allocate", AllocateRequest, self._allocate)),
            ("release", self._handler("release", ReleaseRequest, self._release)),
            ("blocks", self._handler("blocks", BlocksRequest, self._blocks)),
        ):
            subject = subjects.rpc("ipam", operation)
            self._served.append(await self._bus.serve(subject, handle, queue=QUEUE))

    async def stop(self) -> None:
        """Take no more requests."""
        for subscription in self._served:
            await subscription.stop()

    def _handler(
        self,
        operation: str,
        kind: type[Any],
        answer: Callable[[Any], Awaitable[Any]],
    ) -> Callable[[str, bytes], Awaitable[bytes]]:
        async def handle(_subject: str, data: bytes) -> bytes:
            with self._observer.requests.labels(operation).time():
                reply = await self._answer(operation, kind, answer, data)
            result = reply.__struct_config__.tag
            self._observer.replies.labels(operation, result).inc()
            return wire.encode(reply)

        return handle

    async def _answer(
        self, operation: str, kind: type[Any], answer: Callable[[Any], Awaitable[Any]], data: bytes
    ) -> Any:
        try:
            request = wire.decode(data, kind)
        except (msgspec.DecodeError, ValueError) as error:
            self._metrics.bad_input(f"rpc.ipam.{operation}", "parse")
            # Bad input, no bug of ours.
            log.error("bad request", operation=operation, reason=str(error))  # noqa: TRY400
            return Failure(reason=f"rpc.ipam.{operation}: {error}")
        missing = [
            name
            for name in ("node", "container_id", "ifname", "pod_name")
            if getattr(request, name, "x") == ""
        ]
        if missing:
            self._metrics.bad_input(f"rpc.ipam.{operation}", "empty")
            return Failure(reason=f"rpc.ipam.{operation}: $.{missing[0]} is empty")
        if not self._view.is_ready:
            return Failure(reason="ipam has not read all of the cluster yet", retry=True)
        try:
            reply = await answer(request)
        except BusUnavailable as error:
            reply = Failure(reason=str(error), retry=True)
        if isinstance(reply, Failure):
            log.warning("refused", operation=operation, node=request.node, reason=reply.reason)
        return reply

    async def _allocate(self, request: AllocateRequest) -> Allocated | Failure:
        async with self._locks.hold(request.node):
            reply = await self._settle(
                lambda context: requests.allocate(self._view.state, request, context), request.node
            )
        if isinstance(reply, Allocated):
            log.info(
                "allocated",
                node=request.node,
                pod=f"{request.pod_namespace}/{request.pod_name}",
                container_id=request.container_id,
                ifname=request.ifname,
                ips=[str(ip) for ip in reply.ips],
            )
        return reply  # type: ignore[no-any-return]

    async def _blocks(self, request: BlocksRequest) -> Blocks | Failure:
        async with self._locks.hold(request.node):
            return await self._settle(  # type: ignore[no-any-return]
                lambda context: requests.blocks(self._view.state, request, context), request.node
            )

    async def _settle(self, decide: Decide, node: str) -> Any:
        """
        Decide, write, decide again, until a decision needs no writing and knows all there is.

        An answer (a refusal, too) counts only if the view has been read up to this request's own
        last line, or, if it wrote none, up to the stream's end.
        """
        view = self._view
        last = 0
        verified = False
        for _ in range(ATTEMPTS):
            decision = decide(self._context(node))
            if isinstance(decision, Need) and decision.claims_blocks and not verified:
                await view.reach_now(subjects.FACTS_STREAM)
                verified = True
            elif isinstance(decision, Need):
                last = max(last, await view.write(decision.writes))
                verified = False
            elif not verified:
                await (view.reach(last) if last else view.reach_now(subjects.FACTS_STREAM))
                verified = True
            elif isinstance(decision, Refused):
                if decision.undo:
                    await view.write(decision.undo)
                return decision.failure
            else:
                return decision
        return Failure(reason=f"node {node}: overtaken {ATTEMPTS} times", retry=True)

    async def _release(self, request: ReleaseRequest) -> Released | Failure:
        view = self._view
        released: list[IPAddress] = []
        async with self._locks.hold(request.node):
            # Another replica may have given the address a moment ago.
            await view.reach_now(subjects.FACTS_STREAM)
            for _ in range(ATTEMPTS):
                decision = requests.release(view.state, request, view.now_ms())
                if isinstance(decision, Released):
                    if released:
                        ips = [str(ip) for ip in released]
                        log.info(
                            "released",
                            node=request.node,
                            container_id=request.container_id,
                            ips=ips,
                        )
                    return Released(ips=tuple(released))
                before = {line.fact.ip for line in view.state.owned(requests.owner_of(request))}
                await view.write(decision.writes)
                after = {line.fact.ip for line in view.state.owned(requests.owner_of(request))}
                released.extend(sorted(before - after, key=ip_order))
        return Failure(reason=f"node {request.node}: overtaken {ATTEMPTS} times", retry=True)

    def _context(self, node: str) -> Context:
        return Context(self._view.now_ms(), self._may_carve(node))

    def _may_carve(self, node: str) -> bool:
        """The agents of all other ready nodes have said what they have, or have had the time to."""
        view = self._view
        fact = view.state.node(node)
        if fact is None or fact.pod_cidrs:
            return True
        since = view.ready_since_ms
        if since is not None and view.now_ms() >= since + self._agents_grace_ms:
            return True
        switches = view.state.facts["switch"]
        return all(
            name in switches or name.name == node or not other.ready
            for name, other in view.state.facts["node"].items()
        )
