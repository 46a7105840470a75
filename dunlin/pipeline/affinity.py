"""
ClientIP affinity on the switch alone: learn() remembers, a hash of the client's address decides.

The hash is by rendezvous (OVS scores every bucket with its bucket_id): the same client gets the
same endpoint on every switch, also when nothing is remembered. What is remembered makes it exact
when endpoints are added. A remembered endpoint that is gone has no flow in AffinityEndpoint: its
clients choose anew. ADR 0008.
"""

import hashlib
import math
from collections.abc import Callable, Sequence

from dunlin.events.intents import ServiceEndpoint
from dunlin.openflow.fields import FIELDS
from dunlin.openflow.flow import (
    Action,
    Bucket,
    Flow,
    Group,
    Learn,
    LearnSpec,
    Resubmit,
    SetField,
    ToGroup,
    match,
    set_field,
    with_fields,
)
from dunlin.pipeline.base import FlowMaker
from dunlin.pipeline.families import Family, family_of
from dunlin.pipeline.layout import (
    ENDPOINT_REG,
    LIFETIME_REG,
    WANTED_REG,
    Priority,
    Table,
)

IDLE_TIMEOUT_MAX_S = 0xFFFF
"""OpenFlow has 16 bits: longer ones are kept by flowctl, see `lifetime_s`."""
FLAT_MAX = 256
_BUCKET_IDS = 0xFFFFFF00

Translate = Callable[[ServiceEndpoint], tuple[Action, ...]]


def choose_with_affinity(group_id: int) -> tuple[tuple[Action, ...], Table]:
    """Actions and goto of a flow that wants an endpoint of this set: the remembered one first."""
    return (set_field(WANTED_REG, group_id), Resubmit(Table.AFFINITY)), Table.AFFINITY_ENDPOINT


def remember(
    make: FlowMaker,
    group_id: int,
    endpoints: Sequence[ServiceEndpoint],
    timeout_s: int,
    translate: Translate,
) -> None:
    """The flows of one set of endpoints (of one family, not empty) around its group."""
    family = family_of(endpoints[0].ip)
    ours = with_fields(family.any, match(**{WANTED_REG: group_id}))
    for number, endpoint in numbered(endpoints).items():
        known = with_fields(ours, match(**{ENDPOINT_REG: number}))
        make.add(Table.AFFINITY_ENDPOINT, Priority.EXACT, known, translate(endpoint))
    make.add(Table.AFFINITY_ENDPOINT, Priority.DEFAULT, ours, (ToGroup(group_id),))
    learn = Learn(
        int(Table.AFFINITY),
        int(Priority.EXACT),
        make.cookie,
        _specs(family, group_id, timeout_s),
        idle_timeout_s=timeout_s if timeout_s <= IDLE_TIMEOUT_MAX_S else 0,
        delete_learned=True,
    )
    again = (learn, Resubmit(Table.AFFINITY_ENDPOINT))
    make.add(Table.AFFINITY_LEARN, Priority.EXACT, ours, again)


def numbered(endpoints: Sequence[ServiceEndpoint]) -> dict[int, ServiceEndpoint]:
    """
    Every endpoint by its bucket id, which is a hash of itself.

    So what a client hashes to, and what is remembered of it, does not depend on who else is there;
    where two hashes are equal (one set of 1,000 in about 10,000) the second takes the next number.
    """
    found: dict[int, ServiceEndpoint] = {}
    for endpoint in endpoints:
        digest = hashlib.sha256(endpoint.ip.packed + endpoint.port.to_bytes(2, "big")).digest()
        number = int.from_bytes(digest[:4], "big") % _BUCKET_IDS
        while number in found or not number:
            number = (number + 1) % _BUCKET_IDS
        found[number] = endpoint
    return found


def affinity_groups(group_id: int, endpoints: Sequence[ServiceEndpoint]) -> tuple[Group, ...]:
    """The group that chooses by the client's address; above FLAT_MAX two levels, inner first."""
    fields = (family_of(endpoints[0].ip).src,)
    if len(endpoints) <= FLAT_MAX:
        return (_group(group_id, _buckets(tuple(numbered(endpoints))), fields),)
    shares = split(tuple(numbered(endpoints)))
    inner = tuple(
        _group(group_id + 1 + i, _buckets(share), fields, basis=i + 1)
        for i, share in enumerate(shares)
    )
    outer = tuple(Bucket(i, (ToGroup(group.group_id),)) for i, group in enumerate(inner))
    return (*inner, _group(group_id, outer, fields))


def split(items: Sequence[int]) -> list[Sequence[int]]:
    """Cut into equal parts (sizes differ by one at most), a power of two near sqrt(n) of them."""
    count = 1 << max(1, round(math.log2(len(items)) / 2))
    while len(items) > count * 64:
        count *= 2
    count = min(count, 255)
    bounds = [len(items) * i // count for i in range(count + 1)]
    return [items[bounds[i] : bounds[i + 1]] for i in range(count)]


def _group(
    group_id: int, buckets: tuple[Bucket, ...], fields: tuple[str, ...], basis: int = 0
) -> Group:
    return Group(group_id, "select", buckets, "hash", basis, fields)


def _buckets(numbers: Sequence[int]) -> tuple[Bucket, ...]:
    return tuple(
        Bucket(number, (set_field(ENDPOINT_REG, number), Resubmit(Table.AFFINITY_LEARN)))
        for number in numbers
    )


def lifetime_s(flow: Flow) -> int | None:
    """
    After how long without use flowctl removes a learned flow; None: the switch does so itself.

    The flow says so itself: whoever has a dump needs nothing else, and while no flowctl runs a
    client is remembered for longer, never for less.
    """
    for action in flow.actions:
        if isinstance(action, SetField) and action.field == LIFETIME_REG:
            return action.value
    return None


def _specs(family: Family, group_id: int, timeout_s: int) -> tuple[LearnSpec, ...]:
    width = FIELDS[family.src].bits
    specs = (
        LearnSpec("match", "eth_type", 16, value=family.eth_type),
        LearnSpec("match", family.src, width, src_field=family.src),
        LearnSpec("match", WANTED_REG, 32, value=group_id),
        LearnSpec("load", ENDPOINT_REG, 32, src_field=ENDPOINT_REG),
    )
    if timeout_s <= IDLE_TIMEOUT_MAX_S:
        return specs
    return (*specs, LearnSpec("load", LIFETIME_REG, 32, value=timeout_s))
