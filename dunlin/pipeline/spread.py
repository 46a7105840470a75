"""
Spreading a ServicePort evenly over its endpoints with OVS select groups.

OVS maps dp_hash to a bucket through slots: a power of two >= total weight / smallest weight, at
most 256. Equal weights skew up to 2:1 (9 endpoints on 16 slots). So the weights of the first
level always sum to 256 and one filler bucket has weight 1: 256 slots, each endpoint
has floor or ceil of 256/n of them. Above `FLAT_BUCKETS_MAX` endpoints two levels do it: about
sqrt(n) inner groups, each hashed with a basis of its own.
"""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

from dunlin.openflow.flow import Action, Bucket, Group, ToGroup
from dunlin.pipeline.layout import FLAT_BUCKETS_MAX, HASH_SLOTS

T = TypeVar("T")

ENDPOINTS_MAX = FLAT_BUCKETS_MAX * 255
"""Inner groups have ids group_id+1 … group_id+255."""


class TooManyEndpoints(ValueError):
    """More endpoints of one family than two levels hold (16,320)."""


def even_weights(count: int) -> list[int]:
    """
    Weights of `count` + 1 buckets, 1 <= count <= 255; the last one is the filler.

    They sum to 256, the filler (which repeats the last endpoint) has 1: OVS makes 256 slots.
    """
    share, rest = divmod(HASH_SLOTS - 1, count)
    return [share + (1 if i < rest else 0) for i in range(count)] + [1]


def spread_groups(
    group_id: int, items: Sequence[T], actions: Callable[[T], tuple[Action, ...]]
) -> tuple[Group, ...]:
    """
    The select group `group_id` over `items` (1 … ENDPOINTS_MAX), inner groups first.

    Raises:
        TooManyEndpoints: more than ENDPOINTS_MAX.
    """
    if len(items) > ENDPOINTS_MAX:
        raise TooManyEndpoints(f"{len(items)} endpoints, at most {ENDPOINTS_MAX}")
    if len(items) <= FLAT_BUCKETS_MAX:
        return (_flat(group_id, [actions(item) for item in items]),)
    shares = split(items)
    inner = tuple(
        _flat(group_id + 1 + index, [actions(item) for item in part], basis=index + 1)
        for index, part in enumerate(shares)
    )
    outer = _flat(group_id, [(ToGroup(group.group_id),) for group in inner])
    return (*inner, outer)


def split(items: Sequence[T]) -> list[Sequence[T]]:
    """Cut into equal parts (sizes differ by one at most), a power of two near sqrt(n) of them."""
    count = 1 << max(1, round(math.log2(len(items)) / 2))
    while len(items) > count * FLAT_BUCKETS_MAX:
        count *= 2
    count = min(count, 255)
    bounds = [len(items) * i // count for i in range(count + 1)]
    return [items[bounds[i] : bounds[i + 1]] for i in range(count)]


def _flat(group_id: int, choices: list[tuple[Action, ...]], basis: int = 0) -> Group:
    weights = even_weights(len(choices))
    chosen = [*choices, choices[-1]]
    buckets = tuple(
        Bucket(bucket_id=i, actions=chosen[i], weight=weights[i]) for i in range(len(chosen))
    )
    method = "dp_hash" if basis else ""
    return Group(group_id, "select", buckets, selection_method=method, hash_basis=basis)
