"""
Spreading a ServicePort evenly over its endpoints with OVS select groups.

OVS maps dp_hash to a bucket through slots: a power of two >= total weight / smallest weight, at
most 256. Equal weights skew up to 2:1 (9 endpoints on 16 slots). So the weights always sum to 256
and one filler bucket has weight 1: 256 slots, each endpoint has floor or ceil of 256/n of them.

Above `FLAT_BUCKETS_MAX` endpoints that is too coarse. A group in a bucket of a group does not help:
a packet has one dp_hash, and both would look at the same eight bits of it. So a group of one bucket
has dp_hash computed and copies more bits of it into a register, and flows of table EndpointSlot
(for OVS lets no flow match dp_hash itself) share those out. ADR 0017.
"""

from collections.abc import Sequence
from typing import TypeVar

from dunlin.openflow.flow import Action, Bucket, Group, Move, Resubmit, set_field
from dunlin.pipeline.layout import ENDPOINT_REG, HASH_SLOTS, WANTED_REG, Table

T = TypeVar("T")

ENDPOINTS_MAX = 1 << 16
_SLOTS_PER_ENDPOINT = 16
"""At least: nobody has more than 1/16 above or below the mean."""


class TooManyEndpoints(ValueError):
    """More endpoints of one family than ENDPOINTS_MAX."""


def even_weights(count: int) -> list[int]:
    """
    Weights of `count` + 1 buckets, 1 <= count <= 255; the last one is the filler.

    They sum to 256, the filler (which repeats the last endpoint) has 1: OVS makes 256 slots.
    """
    share, rest = divmod(HASH_SLOTS - 1, count)
    return [share + (1 if i < rest else 0) for i in range(count)] + [1]


def spread_group(group_id: int, choices: Sequence[tuple[Action, ...]]) -> Group:
    """The select group over the actions of up to FLAT_BUCKETS_MAX endpoints."""
    weights = even_weights(len(choices))
    chosen = [*choices, choices[-1]]
    return _group(group_id, tuple(map(Bucket, range(len(chosen)), chosen, weights)))


def slot_group(group_id: int, count: int) -> Group:
    """The group that has dp_hash computed and leaves the choice to the flows of `slots`."""
    bits = Move("dp_hash", ENDPOINT_REG, slot_bits(count))
    ask = (bits, set_field(WANTED_REG, group_id), Resubmit(Table.ENDPOINT_SLOT))
    return _group(group_id, (Bucket(0, ask, 1),))


def slot_bits(count: int) -> int:
    """How many bits of dp_hash so many endpoints share: no more than needed, for they are exact."""
    return (_SLOTS_PER_ENDPOINT * count - 1).bit_length()


def _group(group_id: int, buckets: tuple[Bucket, ...]) -> Group:
    # Said outright: where no method is said OVS leaves the ports of UDP out of the hash.
    return Group(group_id, "select", buckets, selection_method="dp_hash")


def slots(items: Sequence[T]) -> list[tuple[tuple[int, int], T]]:
    """
    Which of the lowest bits of dp_hash are whose: ((value, mask), item), each value once.

    Every item has as many slots, and the first ones one more; of 2^k, at least 16 times as many as
    items. A block of slots that is a power of two is one match: first everybody's largest block is
    laid out, then the next, so that all begin where their size wants it.

    Raises:
        TooManyEndpoints: more than ENDPOINTS_MAX.
    """
    if len(items) > ENDPOINTS_MAX:
        raise TooManyEndpoints(f"{len(items)} endpoints, at most {ENDPOINTS_MAX}")
    total = 1 << slot_bits(len(items))
    share, rest = divmod(total, len(items))
    blocks = [(1 << bit, items) for bit in reversed(range(share.bit_length())) if share >> bit & 1]
    found: list[tuple[tuple[int, int], T]] = []
    start = 0
    for size, owners in (*blocks, (1, items[:rest])):
        for item in owners:
            found.append(((start, total - size), item))
            start += size
    assert start == total, (start, total)
    return found
