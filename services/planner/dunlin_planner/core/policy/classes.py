"""Classes of addresses that policies do not tell apart."""

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from functools import lru_cache

from dunlin.events.intents import ClassRole
from dunlin_planner.core.policy.variants import Element


@lru_cache(maxsize=1 << 16)
def _digest(element: Element) -> bytes:
    return hashlib.sha256(f"{type(element).__name__}{element!r}".encode()).digest()


def class_id(role: ClassRole, elements: Iterable[Element]) -> int:
    """
    62 bits of SHA-256 of what the class is, not 0: no table of ids to keep, none ever moves.

    Two of a million classes share an id with a probability of 1e-7.
    """
    text = b"".join(sorted(map(_digest, elements)))
    return (
        int.from_bytes(hashlib.sha256(role.encode() + b"\0" + text).digest()[:8], "big") >> 2 or 1
    )


@dataclass(frozen=True, slots=True)
class PolicyClass:
    """A class in use."""

    role: ClassRole
    elements: frozenset[Element]


class Classes:
    """Which classes are in use, by whom, and which an element is part of."""

    def __init__(self) -> None:
        self.known: dict[int, PolicyClass] = {}
        self._holders: dict[int, set[Hashable]] = {}
        self._class_of: dict[tuple[ClassRole, Hashable], int] = {}
        self._with: dict[Element, set[int]] = defaultdict(set)

    def of(self, role: ClassRole, holder: Hashable) -> int:
        """The class of a Pod or a prefix in this role; 0: none."""
        return self._class_of.get((role, holder), 0)

    def having(self, element: Element) -> frozenset[int]:
        """The classes in use that have this element."""
        return frozenset(self._with.get(element, ()))

    def put(self, role: ClassRole, holder: Hashable, elements: frozenset[Element]) -> set[int]:
        """
        The elements of a holder from now on (none: no class).

        Returns:
            Nothing if its class is the same, else its class before and now; they may be new or
            gone.
        """
        old = self.of(role, holder)
        new = class_id(role, elements) if elements else 0
        if old == new:
            return set()
        if new:
            if new not in self.known:
                self.known[new] = PolicyClass(role, elements)
                self._holders[new] = set()
                for element in elements:
                    self._with[element].add(new)
            self._holders[new].add(holder)
            self._class_of[role, holder] = new
        else:
            del self._class_of[role, holder]
        if old:
            self._leave(old, holder)
        return {one for one in (old, new) if one}

    def _leave(self, old: int, holder: Hashable) -> None:
        self._holders[old].discard(holder)
        if self._holders[old]:
            return
        del self._holders[old]
        for element in self.known.pop(old).elements:
            self._with[element].discard(old)
            if not self._with[element]:
                del self._with[element]
