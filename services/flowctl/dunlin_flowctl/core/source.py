"""
What a switch's own part is made from: who finds the same need not make it to know it. ADR 0048.

Compiling what one switch holds of its own takes longer than all the rest of taking it over.
"""

import hashlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from dunlin.events.intents import AnyIntent
from dunlin.model.ids import IntentId

_DIGEST_BITS, _COUNT_BITS = 80, 24


class Source(NamedTuple):
    """`digest`: of what a part was made from; `flows`, `groups`: how many have come of it."""

    digest: int
    flows: int
    groups: int

    def word(self) -> int:
        """As one number of 128 bits; 0: there are too many of them."""
        if max(self.flows, self.groups) >> _COUNT_BITS:
            return 0
        return (self.digest << _COUNT_BITS | self.flows) << _COUNT_BITS | self.groups

    @classmethod
    def of(cls, word: int) -> "Source":
        """What a number says."""
        count = (1 << _COUNT_BITS) - 1
        return cls(word >> 2 * _COUNT_BITS, word >> _COUNT_BITS & count, word & count)


class Sources:
    """Digests of intents, each made once: the change of a Pod costs what that Pod does."""

    def __init__(self, version: bytes, digest: Callable[[AnyIntent], bytes]) -> None:
        """`version`: of what makes programs of intents; `digest`: of one."""
        self._version = version
        self._digest = digest
        self._known: dict[IntentId, tuple[AnyIntent, bytes]] = {}

    def forget(self, intent_id: IntentId) -> None:
        """It is gone."""
        self._known.pop(intent_id, None)

    def digest(self, intents: Iterable[AnyIntent | None]) -> int:
        """Of these in this order, and of what makes programs of them; never 0."""
        content = hashlib.blake2b(self._version, digest_size=_DIGEST_BITS // 8)
        for intent in intents:
            part = self._of(intent) if intent is not None else b""
            content.update(len(part).to_bytes(1, "big") + part)
        return int.from_bytes(content.digest(), "big") or 1

    def _of(self, intent: AnyIntent) -> bytes:
        known, digest = self._known.get(intent.id, (None, b""))
        if known is not intent:
            digest = self._digest(intent)
            self._known[intent.id] = (intent, digest)
        return digest
