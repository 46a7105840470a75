"""What an agent sees of ipam, planner and flowctl: on a memory bus, obedient and observable."""

import asyncio
from ipaddress import ip_address, ip_network

from dunlin import subjects, wire
from dunlin.bus.base import Message
from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.events.facts import AttachmentFact
from dunlin.events.rpc import (
    Allocated,
    AllocateRequest,
    BarrierReply,
    BarrierRequest,
    Blocks,
    Failure,
    Released,
    ReleaseRequest,
)
from dunlin.events.state import Progress
from dunlin.model.addresses import IPAddress

GATEWAYS = (ip_address("10.1.0.1"), ip_address("fd10::1"))


class ControlPlane:
    """Gives addresses 10.1.0.2, fd10::2 and so on; claims every fact at once unless told not to."""

    def __init__(self, server: MemoryServer, node: str) -> None:
        """Nothing runs before `start`."""
        self.bus = MemoryBus(server)
        self.node = node
        self.ledger: dict[tuple[str, str], tuple[IPAddress, ...]] = {}
        self.released: list[str] = []
        self.barriers: list[BarrierRequest] = []
        self.refuse: Failure | None = None
        self.planner_works = True
        self.in_force = True
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Serve requests and follow the facts."""
        await self.bus.ensure_streams()
        await self.bus.serve(subjects.rpc("ipam", "allocate"), self._allocate)
        await self.bus.serve(subjects.rpc("ipam", "release"), self._release)
        await self.bus.serve(subjects.rpc("ipam", "blocks"), self._blocks)
        await self.bus.serve(subjects.rpc("flowctl", "barrier", self.node), self._barrier)
        self._tasks.append(asyncio.create_task(self._claim()))

    async def stop(self) -> None:
        """End."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.bus.close()

    async def attachments(self) -> dict[str, AttachmentFact]:
        """What the stream says now, by name."""
        found = {}
        async for batch in self.bus.follow(
            subjects.FACTS_STREAM, [subjects.facts_of("attachment")]
        ):
            for record in batch.records:
                if not record.is_tombstone:
                    fact = wire.decode(record.data, AttachmentFact)
                    found[fact.name] = fact
            if batch.caught_up:
                break
        return found

    async def _allocate(self, _subject: str, data: bytes) -> bytes:
        request = wire.decode(data, AllocateRequest)
        if self.refuse is not None:
            return wire.encode(self.refuse)
        key = (request.container_id, request.ifname)
        number = len(self.ledger) + 2
        fresh: tuple[IPAddress, ...] = (
            ip_address(f"10.1.0.{number}"),
            ip_address(f"fd10::{number}"),
        )
        ips = self.ledger.setdefault(key, fresh)
        assert not set(ips) & set(request.in_use)
        return wire.encode(Allocated(ips=ips, gateways=GATEWAYS))

    async def _release(self, _subject: str, data: bytes) -> bytes:
        request = wire.decode(data, ReleaseRequest)
        self.released.append(request.container_id)
        return wire.encode(
            Released(ips=self.ledger.get((request.container_id, request.ifname), ()))
        )

    async def _blocks(self, _subject: str, _data: bytes) -> bytes:
        return wire.encode(
            Blocks(
                cidrs=(ip_network("10.1.0.0/24"), ip_network("fd10::/64")),
                gateways=GATEWAYS,
                pod_cidrs=(ip_network("10.0.0.0/8"), ip_network("fd10::/48")),
                service_cidrs=(ip_network("10.96.0.0/16"),),
            )
        )

    async def _barrier(self, _subject: str, data: bytes) -> bytes:
        request = wire.decode(data, BarrierRequest)
        self.barriers.append(request)
        return wire.encode(
            BarrierReply(
                node=self.node,
                applied=self.in_force,
                revision=request.revision,
                missing=() if self.in_force else (f"{self.node}/endpoint/x",),
            )
        )

    async def _claim(self) -> None:
        """Say that ipam and planner have turned into intents whatever they read."""
        async for batch in self.bus.follow(subjects.FACTS_STREAM):
            services = ("ipam", "planner") if self.planner_works else ("ipam",)
            for service in services:
                progress = Progress(
                    service=service,  # type: ignore[arg-type]
                    replica="0",
                    fact_epoch=batch.epoch,
                    fact_seq=batch.seq,
                    intent_epoch=await self.bus.epoch(subjects.INTENTS_STREAM),
                    intent_seq=7,
                )
                await self.bus.publish(Message(progress.subject, wire.encode(progress)))
