"""Requests to ipam over the bus; its refusals and its silence as one typed error."""

from typing import TypeVar

import msgspec

from dunlin import subjects, wire
from dunlin.bus.base import Bus, BusError
from dunlin.events.rpc import (
    Allocated,
    AllocateRequest,
    Blocks,
    BlocksRequest,
    Failure,
    Released,
    ReleaseRequest,
)

R = TypeVar("R")


class IpamError(Exception):
    """No address, or no answer. `retry`: the same request may succeed later."""

    def __init__(self, reason: str, *, retry: bool) -> None:
        super().__init__(reason)
        self.retry = retry


class Ipam:
    """The ledger's clerk for one node."""

    def __init__(self, bus: Bus, node: str) -> None:
        self._bus = bus
        self._node = node

    async def allocate(self, request: AllocateRequest, timeout_s: float) -> Allocated:
        """Addresses for one interface. Raises IpamError."""
        return await self._ask("allocate", request, Allocated, timeout_s)

    async def release(self, container_id: str, ifname: str, timeout_s: float) -> Released:
        """Give addresses back; nothing if there are none. Raises IpamError."""
        request = ReleaseRequest(node=self._node, container_id=container_id, ifname=ifname)
        return await self._ask("release", request, Released, timeout_s)

    async def blocks(self, timeout_s: float) -> Blocks:
        """The node's blocks and gateways; it gets some if it has none. Raises IpamError."""
        return await self._ask("blocks", BlocksRequest(node=self._node), Blocks, timeout_s)

    async def _ask(
        self, operation: str, request: msgspec.Struct, kind: type[R], timeout_s: float
    ) -> R:
        subject = subjects.rpc("ipam", operation)
        try:
            data = await self._bus.request(subject, wire.encode(request), timeout_s=timeout_s)
            reply: R | Failure = wire.decode(data, kind | Failure)  # type: ignore[arg-type]
        except BusError as error:
            raise IpamError(f"ipam {operation}: {error}", retry=True) from error
        except (msgspec.MsgspecError, ValueError) as error:
            raise IpamError(f"ipam {operation}: unreadable reply: {error}", retry=False) from error
        if isinstance(reply, Failure):
            raise IpamError(f"ipam {operation}: {reply.reason}", retry=reply.retry)
        return reply
