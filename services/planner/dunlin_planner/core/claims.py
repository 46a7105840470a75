"""Things that only one object may hold: the smallest claimant has it, whoever came first."""

from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

Resource = TypeVar("Resource", bound=Hashable)
Claimant = TypeVar("Claimant", bound=tuple[str, ...])


class Claims(Generic[Resource, Claimant]):
    """
    Who claims what; a function of the present claims alone.

    A resource has one claimant nearly always, so a claim costs O(1) and a withdrawal O(rivals).
    """

    def __init__(self) -> None:
        self._claimants: dict[Resource, set[Claimant]] = {}
        self._claims: dict[Claimant, frozenset[Resource]] = {}

    def replace(self, claimant: Claimant, resources: Iterable[Resource]) -> set[Claimant]:
        """Its claims from now on; returns the other claimants that may win or lose by that."""
        new = frozenset(resources)
        old = self._claims.get(claimant, frozenset())
        touched: set[Claimant] = set()
        for resource in old - new:
            rivals = self._claimants[resource]
            rivals.discard(claimant)
            touched |= rivals
            if not rivals:
                del self._claimants[resource]
        for resource in new - old:
            rivals = self._claimants.setdefault(resource, set())
            touched |= rivals
            rivals.add(claimant)
        if new:
            self._claims[claimant] = new
        else:
            self._claims.pop(claimant, None)
        return touched - {claimant}

    def claimants(self, resource: Resource) -> frozenset[Claimant]:
        """Everybody who claims it."""
        return frozenset(self._claimants.get(resource, ()))

    def holder(self, resource: Resource) -> Claimant | None:
        """Who has it."""
        rivals = self._claimants.get(resource)
        return min(rivals) if rivals else None
