"""
Intents of a change that is not complete in the stream yet; pure. ADR 0020.

A change of policy is many messages. Each names its change; the last one, a PolicyCommitIntent, says
that everything up to that number has been written. What is newer waits here, so that no switch is
given part of a change, whatever was read when and however often.
"""

from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass, field

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


@dataclass(slots=True)
class Held:
    """
    What waits, by intent, oldest first; `committed`: changes up to here are complete.

    `due`: ids whose turn has come (a commit was read), in order, with what to do: put, or delete.
    `incomplete`: the stream's first reading ended in the middle of a change: what stood before it
    is not known (a stream keeps the last message of a subject), so policy is left alone until then.
    """

    committed: int = 0
    incomplete: bool = False
    due: deque[tuple[IntentId, Version | None]] = field(default_factory=deque)
    _waiting: dict[IntentId, Version] = field(default_factory=dict)
    _since: dict[IntentId, int] = field(default_factory=dict)

    def __contains__(self, intent_id: object) -> bool:
        return intent_id in self._waiting

    def __iter__(self) -> Iterator[IntentId]:
        return iter(self._waiting)

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def first(self) -> int | None:
        """The oldest revision that waits; None: nothing does."""
        return next(iter(self._since.values()), None)

    def keeps(self, version: Version) -> bool:
        """Take it in if its change is not complete; else forget an older one of it."""
        intent_id = version.intent.id
        if version.intent.change <= self.committed:
            self.drop(intent_id)
            return False
        self._since.setdefault(intent_id, version.revision)
        self._waiting[intent_id] = version
        return True

    def drop(self, intent_id: IntentId) -> None:
        """It waits no longer."""
        self._waiting.pop(intent_id, None)
        self._since.pop(intent_id, None)
        self.incomplete = self.incomplete and bool(self._waiting)

    def caught_up(self) -> None:
        """The stream has been read to its end for the first time."""
        self.incomplete = bool(self._waiting)

    def commit(self, intent: PolicyCommitIntent, known: Container[IntentId]) -> None:
        """Everything up to `intent.committed` is due; `known`: intents that stand already."""
        self.committed = max(self.committed, intent.committed)
        for intent_id in map(IntentId, intent.gone):
            waiting = self._waiting.get(intent_id)
            if waiting is not None and waiting.intent.change > self.committed:
                continue
            self.drop(intent_id)
            if intent_id in known:
                self.due.append((intent_id, None))
        self.due.extend(
            (intent_id, version)
            for intent_id, version in self._waiting.items()
            if version.intent.change <= self.committed
        )
