"""What ipam's core is told, and what it asks to be written."""

from dataclasses import dataclass
from typing import TypeAlias

from dunlin.events.facts import AddressFact, AnyFact, BlockFact


@dataclass(frozen=True, slots=True)
class Upserted:
    """The newest state of one object; `seq` in the fact stream."""

    fact: AnyFact
    seq: int


@dataclass(frozen=True, slots=True)
class Deleted:
    """An object is gone; `namespace` is "" where it had none."""

    kind: str
    namespace: str
    name: str
    seq: int


Event: TypeAlias = Upserted | Deleted


@dataclass(frozen=True, slots=True)
class Write:
    """
    A line of the ledger to write, if the last of its subject is still `expected_seq`.

    `gone`: as a tombstone; `fact` then says of what.
    """

    fact: AddressFact | BlockFact
    expected_seq: int
    gone: bool = False
