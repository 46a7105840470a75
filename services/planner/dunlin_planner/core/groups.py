"""
OpenFlow group ids: a hash of what the group is for, so that every run chooses the same.

Two keys may have one hash (at 30,000 groups about 27 pairs do). The rule: in the order of the keys,
each takes the first of its hashes (salt 0, 1, ...) that no smaller key has. That is a function of
the set of keys; `GroupIds` keeps it up to date at a cost that does not depend on the number of
keys.
"""

import hashlib
from typing import Any, Generic, NamedTuple, TypeVar

SLOTS = 2**24 - 2
"""
`group_id = slot << 8` for slots 1 ... SLOTS: with 256 inner ids each they end at 0xFFFFFEFF, below
OFPG_MAX.
"""


class GroupKey(NamedTuple):
    """
    One select group: a ServicePort, a family (`version` 4 or 6) and a set of its endpoints.

    `variant`: "" for the policy Cluster, "local" and "node" for what a node has of its own,
    "zone/<zone>".
    """

    namespace: str
    service: str
    port_name: str
    protocol: str
    version: int
    variant: str = ""


Key = TypeVar("Key", bound=tuple[Any, ...])


def _hash(key: tuple[Any, ...], salt: int, slots: int) -> int:
    if isinstance(key, GroupKey) and not key.variant:
        # As it always was: a group keeps its id through an upgrade.
        key = key[:-1]
    text = "\0".join((*map(str, key), str(salt)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % slots + 1


class Slots(Generic[Key]):
    """
    The slot of every key: numbers from 1 that are a function of the set of keys.

    `slots` may be small in tests; there must be more of them than keys. Each key remembers the
    slots that a smaller key kept from it (`_refused`, in the order of its salts), each slot who
    waits for it.
    """

    def __init__(self, slots: int = SLOTS) -> None:
        self._slots = slots
        self._holder: dict[int, Key] = {}
        self._slot: dict[Key, int] = {}
        self._refused: dict[Key, list[int]] = {}
        self._waiting: dict[int, set[Key]] = {}

    def __contains__(self, key: Key) -> bool:
        """The key has a group."""
        return key in self._slot

    def slot(self, key: Key) -> int:
        """Its number, 1 ... `slots`. Raises KeyError for a key that was not added."""
        return self._slot[key]

    def add(self, key: Key) -> set[Key]:
        """
        Gives it a number.

        Returns the keys whose number changed (itself, and who had to make room).
        """
        if key in self._slot:
            return set()
        if len(self._slot) + 1 >= self._slots:
            raise ValueError(f"no group id is left for {key}")
        moved: set[Key] = set()
        while True:
            slot = _hash(key, len(self._refused.get(key, ())), self._slots)
            holder = self._holder.get(slot)
            if holder is not None and holder < key:
                self._refuse(key, slot)
                continue
            self._holder[slot] = key
            self._slot[key] = slot
            moved.add(key)
            if holder is None:
                return moved
            self._refuse(holder, slot)
            key = holder

    def remove(self, key: Key) -> set[Key]:
        """Takes its group away; returns the other keys whose group changed."""
        slot = self._slot.pop(key, None)
        if slot is None:
            return set()
        self._forget_refusals(key, 0)
        moved: set[Key] = set()
        while waiting := self._waiting.get(slot):
            heir = min(waiting)
            self._forget_refusals(heir, self._refused[heir].index(slot))
            self._holder[slot] = heir
            self._slot[heir], slot = slot, self._slot[heir]
            moved.add(heir)
        del self._holder[slot]
        return moved

    def _refuse(self, key: Key, slot: int) -> None:
        self._refused.setdefault(key, []).append(slot)
        self._waiting.setdefault(slot, set()).add(key)

    def _forget_refusals(self, key: Key, start: int) -> None:
        refused = self._refused.pop(key, [])
        kept = refused[:start]
        for slot in set(refused[start:]) - set(kept):
            waiting = self._waiting[slot]
            waiting.discard(key)
            if not waiting:
                del self._waiting[slot]
        if kept:
            self._refused[key] = kept


class GroupIds(Slots[GroupKey]):
    """The OpenFlow group id of every ServicePort and family."""

    def group_id(self, key: GroupKey) -> int:
        """The OpenFlow group id. Raises KeyError for a key that was not added."""
        return self.slot(key) << 8
