"""
Which ipBlocks hold an address: by longest prefix.

Every cidr and every hole of a block is a prefix. The blocks of a prefix are those whose cidr
holds it
and none of whose holes does; an address is judged by its longest prefix alone. So a block with a
thousand holes costs a thousand and one flows, however many policies use it.
"""

from bisect import bisect_left, insort
from collections import defaultdict
from ipaddress import ip_network

from dunlin.model.addresses import IPNetwork
from dunlin_planner.core.policy.model import Block

_Place = tuple[int, int, int]
"""IP version, first address, prefix length: sorted, what lies inside of a prefix follows it."""


class Networks:
    """The blocks that policies use, and the prefixes that follow from them."""

    def __init__(self) -> None:
        self._blocks_at: dict[IPNetwork, set[Block]] = defaultdict(set)
        self._uses: dict[IPNetwork, int] = defaultdict(int)
        self._order: list[_Place] = []

    @property
    def prefixes(self) -> list[IPNetwork]:
        """All of them, sorted."""
        return [_network(place) for place in self._order]

    def add(self, block: Block) -> set[IPNetwork]:
        """A block is used from now on; the prefixes whose blocks may have changed."""
        if block in self._blocks_at.get(block.cidr, ()):
            return set()
        self._blocks_at[block.cidr].add(block)
        for prefix in (block.cidr, *block.holes):
            if not self._uses[prefix]:
                insort(self._order, _place(prefix))
            self._uses[prefix] += 1
        return self._inside(block.cidr)

    def remove(self, block: Block) -> set[IPNetwork]:
        """Nobody uses this block any more; the prefixes whose blocks may have changed."""
        if block not in self._blocks_at.get(block.cidr, ()):
            return set()
        touched = self._inside(block.cidr)
        self._blocks_at[block.cidr].discard(block)
        if not self._blocks_at[block.cidr]:
            del self._blocks_at[block.cidr]
        for prefix in (block.cidr, *block.holes):
            self._uses[prefix] -= 1
            if not self._uses[prefix]:
                del self._uses[prefix]
                del self._order[bisect_left(self._order, _place(prefix))]
        return touched

    def blocks(self, prefix: IPNetwork) -> frozenset[Block] | None:
        """The blocks of a prefix; None: it is no prefix of ours."""
        if not self._uses.get(prefix):
            return None
        above = {prefix.supernet(new_prefix=length) for length in range(prefix.prefixlen + 1)}
        found = (block for network in above for block in self._blocks_at.get(network, ()))
        return frozenset(block for block in found if not above.intersection(block.holes))

    def _inside(self, network: IPNetwork) -> set[IPNetwork]:
        low = bisect_left(self._order, _place(network))
        end = (network.version, int(network.broadcast_address) + 1, 0)
        inside = {_network(place) for place in self._order[low : bisect_left(self._order, end)]}
        return {prefix for prefix in inside if prefix.prefixlen >= network.prefixlen}


def _place(network: IPNetwork) -> _Place:
    return network.version, int(network.network_address), network.prefixlen


def _network(place: _Place) -> IPNetwork:
    version, first, length = place
    size = 4 if version == 4 else 16
    return ip_network((first.to_bytes(size, "big"), length))
