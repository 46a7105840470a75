"""What the planner's core is told."""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from dunlin.events.facts import AnyFact


@dataclass(frozen=True, slots=True)
class Upserted:
    """The newest state of one object."""

    fact: AnyFact


@dataclass(frozen=True, slots=True)
class Deleted:
    """
    An object is gone; `namespace` is "" where it had none.

    Deleting what is not there is nothing.
    """

    kind: str
    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Owned:
    """
    From now on plan for these shards only (all facts are still to be told).

    `units`: those to plan now, where the caller knows them (`units_by_shard`): to look for them
    anew in 150,000 Pods for each of 16 shards takes longer than to plan them. A shard's may come
    in several events, all of the same `shards`.
    """

    shards: frozenset[int]
    units: "frozenset[Unit] | None" = None


@dataclass(frozen=True, slots=True)
class Renewed:
    """The generation of policy has been changed from outside."""


Event: TypeAlias = Upserted | Deleted | Owned | Renewed


class Unit(NamedTuple):
    """
    What is planned as one: all intents and findings of one object.

    `kind`: node (its switch and its route), service, hostport (all of a Pod's), or one of
    `policy.plan.UNIT_KINDS`.
    """

    kind: str
    namespace: str
    name: str
