"""Work divided over the live replicas of a service: each holds its share of leases on shards."""

import asyncio
import time
from collections.abc import Callable

import structlog

from dunlin.bus.base import BusError, Lease, Leases

log = structlog.get_logger(__name__)


class ShardLeases:
    """
    Leases `<service>/<shard>` for shards 0 ...

    count-1, and `<service>-member/<replica>` to be counted.

    Every replica takes its fair share: the members in the order of their names, the first ones one
    more. Who has too much gives up the highest. `on_change` is called whenever `owned()` may have
    changed.
    """

    def __init__(
        self,
        leases: Leases,
        service: str,
        replica: str,
        count: int,
        *,
        ttl_s: float,
        on_change: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._leases = leases
        self._service = service
        self._replica = replica
        self._count = count
        self._ttl_s = ttl_s
        self.on_change = on_change
        self._clock = clock
        self._held: dict[int, Lease] = {}
        self._member: Lease | None = None

    def owned(self) -> frozenset[int]:
        """What is ours at this very moment, by our clock."""
        limit = self._clock() + self._ttl_s / 6
        return frozenset(shard for shard, lease in self._held.items() if lease.expires_at > limit)

    def held(self) -> frozenset[int]:
        """
        What is ours unless it turns out that somebody else has taken it: what to plan for.

        A lease that was not renewed in time, because the bus or this process was busy, is mostly
        still ours: nothing of it is written until it is renewed (`owned`), but nothing of what was
        computed is thrown away either.
        """
        return frozenset(self._held)

    def fencing(self) -> dict[int, int]:
        """The fencing number of each shard that is ours."""
        return {shard: lease.fencing for shard, lease in sorted(self._held.items())}

    async def run(self) -> None:
        """Keep the share until cancelled, then give it back."""
        try:
            while True:
                try:
                    async with asyncio.timeout(self._ttl_s * 2 / 3):
                        await self.turn()
                except (BusError, TimeoutError) as error:
                    log.warning("leases not renewed", service=self._service, error=str(error))
                await asyncio.sleep(self._ttl_s / 4)
        finally:
            await self._give_back()

    async def turn(self) -> None:
        """Renew, count the members, give up or take what the fair share says."""
        await self._renew()
        members = await self._leases.holders(f"{self._service}-member/")
        share = self._share(sorted({*members.values(), self._replica}))
        surplus = sorted(self._held)[share:]
        if surplus:
            await self._release(surplus)
        elif len(self._held) < share:
            await self._take(share - len(self._held))

    def _share(self, members: list[str]) -> int:
        each, rest = divmod(self._count, len(members))
        return each + (members.index(self._replica) < rest)

    async def _renew(self) -> None:
        name = f"{self._service}-member/{self._replica}"
        member = self._member and await self._leases.renew(self._member, ttl_s=self._ttl_s)
        self._member = member or await self._leases.acquire(name, self._replica, ttl_s=self._ttl_s)
        shards = sorted(self._held)
        found = await asyncio.gather(
            *(self._leases.renew(self._held[shard], ttl_s=self._ttl_s) for shard in shards),
            return_exceptions=True,
        )
        lost: set[int] = set()
        for shard, lease in zip(shards, found, strict=True):
            if isinstance(lease, BusError):
                continue
            if isinstance(lease, BaseException):
                raise lease
            if lease is None:
                lost.add(shard)
            else:
                self._held[shard] = lease
        self._drop(lost, "somebody else holds it")

    async def _take(self, wanted: int) -> None:
        taken = await self._leases.holders(f"{self._service}/")
        gained: list[int] = []
        try:
            for shard in range(self._count):
                name = f"{self._service}/{shard}"
                if len(gained) == wanted:
                    break
                if shard in self._held or taken.get(name, self._replica) != self._replica:
                    continue
                lease = await self._leases.acquire(name, self._replica, ttl_s=self._ttl_s)
                if lease is not None:
                    self._held[shard] = lease
                    gained.append(shard)
        finally:
            # A turn that takes too long is cancelled: what it has gained is ours all the same.
            if gained:
                log.info("shards gained", service=self._service, shards=gained)
                self.on_change()

    def _drop(self, shards: set[int], reason: str) -> None:
        for shard in shards:
            self._held.pop(shard, None)
        if shards:
            log.warning("shards lost", service=self._service, shards=sorted(shards), reason=reason)
            self.on_change()

    async def _release(self, shards: list[int]) -> None:
        leases = [self._held.pop(shard) for shard in shards]
        log.info("shards given up", service=self._service, shards=shards)
        self.on_change()
        for lease in leases:
            await self._leases.release(lease)

    async def _give_back(self) -> None:
        leases = [*self._held.values(), *([self._member] if self._member else [])]
        self._held.clear()
        self._member = None
        self.on_change()
        try:
            async with asyncio.timeout(1):
                await asyncio.gather(*(self._leases.release(lease) for lease in leases))
        except (BusError, TimeoutError) as error:
            log.info("leases not given back", service=self._service, error=str(error))
