"""
The cookie of a flow names the intent that it came from.

    63      56 55      48 47                                   0
    | 0xD1    | kind     | first 48 bits of SHA-256 of the id  |

Forward: `cookie_of(intent_id)`. Back: the kind from the bits, the id from the set of known intents
(`CookieIndex`); at 200,000 intents two ids share a cookie with a probability below 0.0001.
"""

import hashlib
from collections.abc import Iterable
from functools import lru_cache

from dunlin.model.ids import IntentId

OWNER = 0xD1
OWNER_MASK = 0xFF << 56
KINDS = {
    "switch": 1,
    "endpoint": 2,
    "route": 3,
    "service": 4,
    "policy": 5,
    "policyclass": 6,
    "policyport": 7,
    "policypeer": 8,
    "policynetwork": 9,
    "policysubject": 10,
    "policygeneration": 11,
    "localservice": 12,
    "policycommit": 13,
    "hostport": 14,
}
DIGEST_KIND = 0xFF
_KIND_NAMES = {number: name for name, number in KINDS.items()} | {DIGEST_KIND: "digest"}
DIGEST_COOKIE = OWNER << 56 | DIGEST_KIND << 48
"""Of the flows that say what a switch holds: they belong to no intent."""


@lru_cache(maxsize=1 << 18)
def cookie_of(intent_id: IntentId) -> int:
    """
    The cookie of every flow of this intent.

    Raises:
        KeyError: the id's kind is none of `KINDS`.
    """
    kind = KINDS[intent_id.split("/", 2)[1]]
    digest = hashlib.sha256(intent_id.encode()).digest()
    return OWNER << 56 | kind << 48 | int.from_bytes(digest[:6], "big")


def is_ours(cookie: int) -> bool:
    """Written by Dunlin."""
    return cookie >> 56 == OWNER


def kind_of_cookie(cookie: int) -> str | None:
    """The kind of the intent; None for a cookie that is not ours or of a later version."""
    return _KIND_NAMES.get(cookie >> 48 & 0xFF) if is_ours(cookie) else None


class CookieIndex:
    """Cookie -> intent id for a known set of intents; of two that share one: the first known."""

    def __init__(self, intent_ids: Iterable[IntentId] = ()) -> None:
        self._ids: dict[int, IntentId] = {}
        for intent_id in intent_ids:
            self.add(intent_id)

    def add(self, intent_id: IntentId) -> None:
        """Its cookie is known from now on."""
        self._ids.setdefault(cookie_of(intent_id), intent_id)

    def discard(self, intent_id: IntentId) -> None:
        """Forget one; nothing if its cookie is not its own."""
        cookie = cookie_of(intent_id)
        if self._ids.get(cookie) == intent_id:
            del self._ids[cookie]

    def lookup(self, cookie: int) -> IntentId | None:
        """The intent of a cookie, if it is known."""
        return self._ids.get(cookie)
