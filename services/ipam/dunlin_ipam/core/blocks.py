"""Arithmetic of blocks: which addresses can be given, what a pool is carved into."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_network

from dunlin.model.addresses import IPAddress, IPNetwork

FIRST_OFFSET = 2
"""0 is the network (IPv6: the subnet-router anycast address), 1 the node's gateway."""


def gateway_of(block: IPNetwork) -> IPAddress:
    """The node's gateway: the first address of its block."""
    return address_at(block, 1)


def address_at(block: IPNetwork, offset: int) -> IPAddress:
    """The address `offset` places after the network address."""
    found: IPAddress = type(block.network_address)(int(block.network_address) + offset)
    return found


def offset_of(block: IPNetwork, ip: IPAddress) -> int:
    """Inverse of `address_at`."""
    return int(ip) - int(block.network_address)


def end_offset(block: IPNetwork) -> int:
    """One past the last offset that can be given: the last address is the broadcast address."""
    return block.num_addresses - 1


def usable_count(block: IPNetwork) -> int:
    """How many addresses can be given."""
    return max(0, end_offset(block) - FIRST_OFFSET)


def can_be_given(block: IPNetwork, ip: IPAddress) -> bool:
    """In the block, and neither its network, gateway nor broadcast address."""
    return ip in block and FIRST_OFFSET <= offset_of(block, ip) < end_offset(block)


def contains(outer: IPNetwork, inner: IPNetwork) -> bool:
    """Every address of `inner` is in `outer`."""
    return (
        outer.version == inner.version
        and outer.prefixlen <= inner.prefixlen
        and inner.network_address in outer
    )


def overlaps(one: IPNetwork, other: IPNetwork) -> bool:
    """They share addresses."""
    return contains(one, other) or contains(other, one)


def network_order(network: IPNetwork) -> tuple[int, int, int]:
    """IPv4 before IPv6, then by address, wide before narrow."""
    return network.version, int(network.network_address), network.prefixlen


def ip_order(ip: IPAddress) -> tuple[int, int]:
    """IPv4 before IPv6, then by number."""
    return ip.version, int(ip)


def block_around(ip: IPAddress, prefixlen: int) -> IPNetwork:
    """The block of this size that holds `ip`."""
    return ip_network(f"{ip}/{prefixlen}", strict=False)


def carve(pool: IPNetwork, prefixlen: int, taken: Iterable[IPNetwork]) -> Iterator[IPNetwork]:
    """
    The blocks of a pool that overlap nothing of `taken`, lowest first.

    Costs O(taken log taken), not the size of the pool; a pool smaller than a block is its one
    block.
    """
    size = 1 << (pool.max_prefixlen - max(prefixlen, pool.prefixlen))
    start = int(pool.network_address)
    end = start + pool.num_addresses
    spans = sorted(
        (int(t.network_address), int(t.network_address) + t.num_addresses)
        for t in taken
        if overlaps(pool, t)
    )
    place = start
    while place + size <= end:
        while spans and spans[0][1] <= place:
            spans.pop(0)
        if spans and spans[0][0] < place + size:
            # Go on behind the obstacle, at the next multiple of the size.
            place += max(size, -((place - spans[0][1]) // size) * size)
            continue
        yield ip_network(f"{address_at(pool, place - start)}/{max(prefixlen, pool.prefixlen)}")
        place += size
