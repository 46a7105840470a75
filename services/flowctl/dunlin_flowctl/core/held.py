"""
Intents of a change that is not complete in the stream yet; pure. ADR 0020, 0030.

A change of policy is many messages. Each names its change; the last one, a PolicyCommitIntent, says
that everything up to that number has been written. What is newer waits here, so that no switch is
given part of a change, whatever was read when and however often. Of a change that is prepared
switches hold both versions, until it is committed.
"""

from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from dunlin.events.intents import AnyIntent, PolicyCommitIntent
from dunlin.model.ids import IntentId
from dunlin.openflow.cookie import KINDS

POLICY_COOKIES = frozenset(number for kind, number in KINDS.items() if kind.startswith("policy"))
"""What cookies of flows of policy have as their kind."""


def is_policy(intent_id: IntentId) -> bool:
    """An intent that comes into force with its change."""
    return intent_id.split("/", 2)[1].startswith("policy")


@dataclass(frozen=True, slots=True)
class Version:
    """The newest version of an intent. `published_ms`: Unix milliseconds."""

    intent: AnyIntent
    revision: int
    published_ms: int = 0


class Due(NamedTuple):
    """
    An intent whose turn has come: put `version`, or (None) delete it.

    `again`: only compile it anew: what it will be (`Held.coming`) is another now. `since`: the
    revision of its change, where that was prepared before it was committed; 0: it was not.
    """

    intent_id: IntentId
    version: Version | None = None
    again: bool = False
    since: int = 0


@dataclass(slots=True)
class Held:
    """
    What waits, by intent, oldest first; `committed`: changes up to here are complete.

    `due`: what a commit that was read leads to, in order.
    `incomplete`: the stream's first reading ended in the middle of a change: what stood before it
    is not known (a stream keeps the last message of a subject), so policy is left alone until then.
    `prepared`: switches hold the changes up to here beside what is committed, since `prepared_at`
    (a revision); 0: none. `coming`: what these intents will be; None: gone.
    """

    committed: int = 0
    incomplete: bool = False
    prepared: int = 0
    prepared_at: int = 0
    due: deque[Due] = field(default_factory=deque)
    coming: dict[IntentId, Version | None] = field(default_factory=dict)
    _live: bool = False
    _waiting: dict[IntentId, Version] = field(default_factory=dict)
    _since: dict[IntentId, int] = field(default_factory=dict)
    _order: deque[tuple[IntentId, int]] = field(default_factory=deque)
    """`_since` in order, with what has left it: a dict's first key costs all that went before."""

    def __contains__(self, intent_id: object) -> bool:
        return intent_id in self._waiting

    def __iter__(self) -> Iterator[IntentId]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first(self) -> int | None:
        """The oldest revision that waits; None: nothing does."""
        while self._order and self._since.get(self._order[0][0]) != self._order[0][1]:
            self._order.popleft()
        return self._order[0][1] if self._order else None

    def keeps(self, version: Version) -> bool:
        """Take it in if its change is not complete; else forget an older one of it."""
        intent_id = version.intent.id
        if version.intent.change <= self.committed:
            self.drop(intent_id)
            return False
        if intent_id not in self._since:
            self._since[intent_id] = version.revision
            self._order.append((intent_id, version.revision))
        self._waiting[intent_id] = version
        return True

    def drop(self, intent_id: IntentId) -> None:
        """It waits no longer."""
        self.coming.pop(intent_id, None)
        self._waiting.pop(intent_id, None)
        self._since.pop(intent_id, None)
        self.incomplete = self.incomplete and bool(self._waiting)

    def caught_up(self) -> None:
        """The stream has been read to its end for the first time."""
        self._live = True
        self.incomplete = bool(self._waiting)

    def commit(self, intent: PolicyCommitIntent, revision: int, known: Container[IntentId]) -> None:
        """
        What is committed, and then what is prepared, is due.

        `revision`: of this message; `known`: intents that stand already.
        """
        self.committed = max(self.committed, intent.committed)
        if intent.prepared > self.committed:
            self._prepare(intent, revision, known)
            return
        since = self.prepared_at if self.prepared else 0
        self.prepared = 0
        before, self.coming = self.coming, {}
        for intent_id in map(IntentId, intent.gone):
            waiting = self._waiting.get(intent_id)
            if waiting is not None and waiting.intent.change > self.committed:
                continue
            self.drop(intent_id)
            if intent_id in known:
                self.due.append(Due(intent_id, since=since))
                before.pop(intent_id, None)
        self.due.extend(
            Due(intent_id, version, since=since)
            for intent_id, version in self._waiting.items()
            if version.intent.change <= self.committed
        )
        self.due.extend(Due(intent_id, again=True) for intent_id in before)

    def _prepare(
        self, intent: PolicyCommitIntent, revision: int, known: Container[IntentId]
    ) -> None:
        """
        Both versions from now on.

        Whoever does not know what stood before waits for the commit instead.
        """
        if self.incomplete or not self._live:
            return
        self.prepared, self.prepared_at = intent.prepared, revision
        before = self.coming
        self.coming = {IntentId(intent_id): None for intent_id in intent.gone if intent_id in known}
        self.coming |= {
            intent_id: version
            for intent_id, version in self._waiting.items()
            if version.intent.change <= self.prepared
        }
        changed = [i for i in self.coming if before.get(i, 0) != self.coming[i]]
        changed += before.keys() - self.coming.keys()
        self.due.extend(Due(intent_id, again=True) for intent_id in changed)
