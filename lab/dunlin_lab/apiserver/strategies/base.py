"""What a kind may override between a request and the store."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from dunlin_lab.apiserver.allocators import AddressPool, PortPool
    from dunlin_lab.apiserver.errors import Cause
    from dunlin_lab.apiserver.store import Store
    from dunlin_lab.apiserver.values import Obj


@dataclass(frozen=True, slots=True)
class Context:
    """What a write may read besides its object. `now` is in seconds since the epoch."""

    store: Store
    pools: Sequence[AddressPool]
    node_ports: PortPool
    rng: random.Random
    now: float
    subresource: str = ""
    validate: bool = field(default=True)

    @property
    def families(self) -> list[str]:
        """The IP families of the Service CIDRs, the primary one first."""
        return [f"IPv{pool.cidr.version}" for pool in self.pools]


class Strategy(Protocol):
    """All three get the object as it would be stored; `old` is None for a create."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Set defaults in place, and put back what this request may not change."""

    def validate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Return every field error."""

    def allocate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Take what has to be unique, once the object is known to be valid."""


class Plain:
    """A kind without a meaning of its own: stored as it came."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Nothing to set."""

    def validate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Nothing to refuse."""
        return []

    def allocate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Nothing to take."""
        return []


def keep_status(obj: Obj, old: Obj | None, context: Context, initial: Obj | None) -> None:
    """Let only the status subresource write status; `initial` is that of a new object."""
    if context.subresource == "status":
        return
    found = initial if old is None else old.get("status")
    if found is None:
        obj.pop("status", None)
    else:
        obj["status"] = found
