"""One switch: what it holds, what it still lacks, what it refused."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from dunlin.model.ids import IntentId
from dunlin_flowctl.core.digest import UNKNOWN, Digests, Totals
from dunlin_flowctl.core.layer import Changes, Layer, Replaced
from dunlin_flowctl.core.program import Compiled
from dunlin_flowctl.core.source import Source

RETRY_FIRST_S = 1.0
RETRY_MAX_S = 300.0


@dataclass(frozen=True, slots=True)
class Moment:
    """
    A change of an intent: its `revision`, and when it was published (Unix milliseconds).

    `trigger_ms`: when the Kubernetes object changed, where known.
    """

    revision: int
    published_ms: int = 0
    trigger_ms: int | None = None


class Change(NamedTuple):
    """A change of what every switch holds; `before`: what all of that added up to."""

    before: Totals
    changes: Changes
    moment: Moment


class Then(NamedTuple):
    """A state of what every switch holds, and the changes that came after it."""

    shared: Totals
    since: list[Change]


@dataclass(slots=True)
class Pending:
    """
    An intent that the switch does not hold as it should be.

    `installed`: what it holds instead. `since`: the first change that is not applied.
    """

    installed: Compiled | None
    since: Moment


@dataclass(frozen=True, slots=True)
class Refused:
    """
    An intent that the switch refused `attempts` times. `retry_at`: monotonic seconds.

    `unsure`: what the switch holds of it is not `installed` for certain: only a dump tells.
    """

    installed: Compiled | None
    reason: str
    attempts: int
    retry_at: float
    unsure: bool = False


@dataclass(slots=True)
class Work:
    """
    Changes being written. `moments`: of those parts that were pending (others are retries).

    `refused`: what to leave alone: the switch refused it and it is not yet time to ask again.
    """

    parts: dict[IntentId, Replaced] = field(default_factory=dict)
    moments: dict[IntentId, Moment] = field(default_factory=dict)
    refused: frozenset[IntentId] = frozenset()


class Switch:
    """
    The changes of one managed switch. One piece of work is in flight at a time.

    `made`: its own part has been compiled. `source`: what that was made from, where it is known.
    `synced`: compared with its dump in this session; before, its revision is 0.
    `partial`: that left policy alone, which was not known; its revision is 0 then, too.
    `suspect`: it may hold something else than this says; only a dump tells.
    `leftovers`: it holds something that nothing explains and that may not be deleted yet.
    `stray_groups`: ids of such groups. `digests`: what it says of itself.
    """

    def __init__(self, node: str, dpid: int, own: Layer) -> None:
        self.node = node
        self.dpid = dpid
        self.own = own
        self.made = False
        self.source: int | None = None
        self.failures: dict[IntentId, str] = {}
        self.pending: dict[IntentId, Pending] = {}
        self._early: int | None = None
        """A pending revision that is older than the first of `pending`, which is in order else."""
        self.refused: dict[IntentId, Refused] = {}
        self.synced = False
        self.partial = False
        self.suspect = False
        self.leftovers = False
        self.stray_groups: set[int] = set()
        self.digests = UNKNOWN
        self.flows = 0
        self.groups = 0
        self._in_flight: Work | None = None

    def mark(self, changes: Changes, moment: Moment) -> bool:
        """These intents changed; true if there is something to write now."""
        if changes and self.pending and moment.revision < self._first():
            self._early = moment.revision
        for intent_id, replaced in changes.items():
            if intent_id not in self.pending:
                self.pending[intent_id] = Pending(self._held(intent_id, replaced.old), moment)
        return bool(self.pending)

    def _held(self, intent_id: IntentId, before: Compiled | None) -> Compiled | None:
        """What the switch holds (once the work in flight is done) of an intent that changes now."""
        refused = self.refused.get(intent_id)
        if refused is None or (self._in_flight is not None and intent_id in self._in_flight.parts):
            return before
        self.suspect |= refused.unsure
        return refused.installed

    def told(self, digests: Digests, then: Then) -> None:
        """It has said what it holds: its own part as it should be, and the shared one as `then`."""
        self.pending, self._early = {}, None
        self.synced, self.digests = True, digests
        own = self.own.totals if self.made else Source.of(digests.source)
        self.flows = own.flows + then.shared.flows
        self.groups = own.groups + then.shared.groups
        for change in then.since:
            self.mark(change.changes, change.moment)

    def revision(self, read: int) -> int:
        """The switch holds all up to here (but refused ones); the stream is read up to `read`."""
        if not self.synced or self.partial:
            return 0
        first = self._first() if self.pending else read + 1
        if self._in_flight is not None:
            moments = self._in_flight.moments.values()
            first = min(first, min((m.revision for m in moments), default=first))
        return max(0, min(read, first - 1))

    def _first(self) -> int:
        first = next(iter(self.pending.values())).since.revision
        return first if self._early is None else min(first, self._early)

    @property
    def lacking(self) -> list[IntentId]:
        """Intents that are not in force as they should be (refused ones are not among them)."""
        in_flight = self._in_flight.moments if self._in_flight is not None else {}
        return list(dict.fromkeys((*in_flight, *self.pending)))

    def take(
        self, desired: Callable[[IntentId], Compiled | None], now: float, *, retry: bool = False
    ) -> Work:
        """
        Everything pending, as work in flight; refused intents whose time has come go with it.

        `now` in monotonic seconds. `retry`: also when nothing else is pending.
        """
        assert self._in_flight is None, self.node
        work = Work()
        for intent_id, item in self.pending.items():
            work.parts[intent_id] = Replaced(item.installed, desired(intent_id))
            work.moments[intent_id] = item.since
        for intent_id, refusal in self.refused.items():
            if (work.parts or retry) and intent_id not in work.parts and refusal.retry_at <= now:
                work.parts[intent_id] = Replaced(refusal.installed, desired(intent_id))
                self.suspect |= refusal.unsure
        self.pending = {}
        self._early = None
        work.refused = frozenset(self.refused.keys() - work.parts.keys())
        self._in_flight = work
        return work

    def done(self, work: Work) -> None:
        """The switch has acknowledged this work."""
        assert work is self._in_flight, self.node
        self._in_flight = None
        for intent_id, part in work.parts.items():
            self.refused.pop(intent_id, None)
            self.flows += _size(part.new, "flows") - _size(part.old, "flows")
            self.groups += _size(part.new, "groups") - _size(part.old, "groups")

    def back(self, work: Work) -> None:
        """Nothing of this work is on the switch: pending again, before what came later."""
        assert work is self._in_flight, self.node
        self._in_flight = None
        later, self.pending = self.pending, {}
        for intent_id, moment in work.moments.items():
            self.pending[intent_id] = Pending(work.parts[intent_id].old, moment)
        early = [m.revision for m in work.moments.values()]
        early += [] if self._early is None else [self._early]
        self._early = min(early, default=None)
        for intent_id, item in later.items():
            if intent_id in self.pending:
                continue
            if intent_id in work.parts:
                item.installed = work.parts[intent_id].old
            self.pending[intent_id] = item

    def refuse(self, work: Work, reasons: dict[IntentId, str], now: float) -> None:
        """The switch refused these: they leave the work, the rest is pending again."""
        for intent_id, reason in reasons.items():
            part = work.parts.get(intent_id)
            before = self.refused.get(intent_id)
            attempts = before.attempts + 1 if before is not None else 1
            work.moments.pop(intent_id, None)
            wait_s = min(RETRY_MAX_S, RETRY_FIRST_S * 2.0 ** min(attempts - 1, 16))
            self.refused[intent_id] = Refused(
                installed=part.old if part else None,
                reason=reason,
                attempts=attempts,
                retry_at=now + wait_s,
                unsure=part is None or (before is not None and before.unsure),
            )
        self.back(work)

    def next_retry(self) -> float | None:
        """When (monotonic seconds) the first refused intent may be asked again; None: none."""
        return min((refusal.retry_at for refusal in self.refused.values()), default=None)


def _size(part: Compiled | None, what: str) -> int:
    return 0 if part is None else len(getattr(part, what))
