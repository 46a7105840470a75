"""
Changes of policy, written so that a switch gets all of one or nothing of it (ADR 0020).

What has changed is written with the number of its change; then a commit says that this number is
complete; then tombstones, for what the commit has named as gone already. A change that may open one
direction and close the other is prepared first: it is committed when every switch holds both
versions (ADR 0030). What comes meanwhile waits for that, but not long: then it joins. What lifts
the fence of a Pod that a rule denies by its labels is a change of its own, after every switch knows
the Pod (ADR 0039).
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Bus, BusError
from dunlin.events.intents import AnyIntent, PolicyCommitIntent, PolicyDirection
from dunlin.service.intent_writer import IntentWriter
from dunlin_planner.acknowledgements import Acknowledgements
from dunlin_planner.core.policy.order import commit, numbered
from dunlin_planner.fences import Fences

log = structlog.get_logger(__name__)

POLICY_KINDS = (
    "policy", "policyclass", "policyport", "policypeer", "policynetwork", "policysubject",
    "policygeneration", "policycommit",
)  # fmt: skip
GENERATION_SUBJECT = subjects.intent("all", "policygeneration", "all")
COMMIT_SUBJECT = subjects.intent("all", "policycommit", "all")
RETRY_S = 0.2
JOIN_S = 0.5
"""So long a change waits for one that is prepared; then it joins."""
_NONE: Mapping[str, int] = MappingProxyType({})
RECENT_S = 5.0
"""A change of one direction so soon after one of the other may overtake it on a switch."""


def is_policy(subject: str) -> bool:
    """The subject of an intent about policy."""
    return subjects.split(subject)[2] in POLICY_KINDS


class PolicyWriter:
    """
    The planner's intents of policy, while this replica has their shard.

    `committed`: the number of the last change that is in force; the next one is larger, whoever
    writes it. `prepared`: of the last one that is not yet in force, 0: there is none.
    `renew()`: the intent of a new generation of policy, so that connections are judged again.
    """

    def __init__(
        self,
        bus: Bus,
        writer: IntentWriter,
        acknowledged: Acknowledgements,
        fences: Fences,
        renew: Callable[[], Mapping[str, AnyIntent | None]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bus = bus
        self._writer = writer
        self._acknowledged = acknowledged
        self._fences = fences
        self._renew = renew
        self._clock = clock
        self.committed = 0
        self._turned_at: dict[PolicyDirection, float] = {}
        self.forget()

    def forget(self) -> None:
        """The shard is somebody else's."""
        self.prepared = 0
        self._awaited = 0
        self._acknowledged.stop()
        self._fences.forget()
        self._touched: set[str] = set()
        self._gone: set[str] = set()
        self._named: set[str] = set()
        self._turned: set[PolicyDirection] = set()
        self._review = False
        self._adopting = False
        self._later: dict[str, AnyIntent | None] = {}
        self._later_turned: set[PolicyDirection] = set()
        self._later_fenced: dict[str, int] = {}
        self._later_since = 0.0

    @property
    def waiting(self) -> bool:
        """Something that is wanted is not in the stream yet: it cannot be claimed."""
        return bool(self._later)

    def may_withdraw(self, subject: str) -> bool:
        """While a change is prepared, what it withdraws still stands."""
        return not (self.prepared and is_policy(subject))

    def want(
        self,
        changes: Mapping[str, AnyIntent | None],
        turned: Iterable[PolicyDirection] = (),
        fenced: Mapping[str, int] = _NONE,
    ) -> None:
        """
        Part of the next change; None: it is to go.

        `turned`: the directions in which it may change verdicts. `fenced`: what lifts the fence of
        a Pod that every switch must know before, with the sequence of the last fact before it.
        """
        if self.prepared and not self._adopting:
            if changes and not self._later:
                self._later_since = self._clock()
            self._later |= changes
            self._later_turned |= set(turned)
            self._later_fenced |= fenced
            return
        # Who takes over prepares all that differs, so nothing of it needs to wait.
        kept = changes if self._adopting else self._fences.keep(changes, fenced)
        self._want(kept, turned)

    def _want(
        self, changes: Mapping[str, AnyIntent | None], turned: Iterable[PolicyDirection]
    ) -> None:
        self._writer.want({subject: None for subject, i in changes.items() if i is None})
        self._writer.want(numbered(changes, self._last + 1))
        self._touched |= changes.keys()
        gone = {subject for subject, intent in changes.items() if intent is None}
        self._gone = (self._gone - changes.keys()) | gone
        self._turned |= set(turned)

    @property
    def _last(self) -> int:
        return max(self.committed, self.prepared)

    def _join(self) -> None:
        """What waited is part of the next change."""
        later, self._later = self._later, {}
        turned, self._later_turned = self._later_turned, set()
        fenced, self._later_fenced = self._later_fenced, {}
        if later.pop(GENERATION_SUBJECT, None) is not None:
            # It may be older by now than what stands.
            later |= self._renew()
        self._want(self._fences.keep(later, fenced), turned)

    async def adopt(self) -> None:
        """The shard is ours: go on behind the last commit; waits for as long as the bus is away."""
        while True:
            try:
                record = await self._bus.get_last(COMMIT_SUBJECT)
            except BusError as error:
                log.warning("the last commit is not known yet", reason=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                break
        # What is not desired at its time would be withdrawn: who took over cannot know why it is.
        self._review = self._adopting = True
        if record is None or record.is_tombstone:
            return
        try:
            standing = wire.decode(record.data, PolicyCommitIntent)
        except (msgspec.DecodeError, ValueError) as error:
            log.exception("the last commit cannot be read", reason=str(error))
            standing = commit(time.time_ns() // 1_000_000, ())
        self.committed = standing.committed
        if standing.prepared > standing.committed:
            self.prepared = standing.prepared
            self._named = {subjects.intent(*one.split("/", 2)) for one in standing.gone}
            self._await(self.prepared)
        self._writer.want({COMMIT_SUBJECT: standing})

    async def write(self, *, complete: bool) -> None:
        """
        Write the change, if there is one, or the next half of the one that is prepared.

        `complete`: what is not desired may go; else it stays for now.
        """
        self._lift()
        await self._write(complete=complete)
        last = self._writer.standing.get(COMMIT_SUBJECT)
        stands = last is not None and not self._writer.differs_any((COMMIT_SUBJECT,))
        if last is not None and stands and not self.prepared:
            self._fences.begin(last.seq, self._writer.epoch)

    def _lift(self) -> None:
        """These Pods are known everywhere: their fences are part of the next change."""
        # What has changed since waits anew, when it joins.
        self.want(self._fences.lifted(but=self._later))

    async def _write(self, *, complete: bool) -> None:
        adopting, self._adopting = self._adopting, False
        if self.prepared and not adopting:
            if self._acknowledged.done >= self._awaited:
                await self._finish(complete=complete)
            elif not self._later or self._clock() < self._later_since + JOIN_S:
                return
            self._join()
        unfinished = adopting and self._is_unfinished()
        gone = self._leaving() if complete else set()
        touched, self._touched = self._touched, set()
        same = gone == self._named and not unfinished
        if same and not self._writer.differs_any(touched - self._gone):
            return
        # What changed while nobody planned is not known: it may be anything.
        both = adopting or self._turns_both()
        await self._writer.write()
        if both and self.committed:
            await self._prepare(gone)
        elif self.prepared:
            await self._prepare(gone, awaited=False)
        else:
            await self._commit(self.committed + 1, gone)

    def _turns_both(self) -> bool:
        """It may open one direction and close the other, or be overtaken by one that does."""
        now, turned = self._clock(), self._turned
        self._turned = set()
        self._turned_at |= dict.fromkeys(turned, now)
        recent = {d for d, at in self._turned_at.items() if now < at + RECENT_S}
        return bool(turned) and len(recent) > 1

    def _is_unfinished(self) -> bool:
        """Something was written behind the last commit, by a planner that is no more."""
        standing = self._writer.standing
        last = standing.get(COMMIT_SUBJECT)
        newer = (s for subject, s in standing.items() if is_policy(subject) and s.digest)
        return last is not None and any(s.seq > last.seq for s in newer)

    async def _prepare(self, gone: set[str], *, awaited: bool = True) -> None:
        """`awaited`: not to be committed before every switch holds this one, too."""
        self.prepared = self._last + 1
        self._named = gone
        await self._say(commit(self.committed, ids_of(gone), prepared=self.prepared))
        self._acknowledged.count("prepared")
        if awaited:
            self._await(self.prepared)

    def _await(self, change: int) -> None:
        self._awaited = change
        self._acknowledged.watch(change, self._writer.epoch)

    async def _finish(self, *, complete: bool) -> None:
        """Every switch holds both versions: now only the new one."""
        self._acknowledged.stop()
        self.committed, self.prepared = self.prepared, 0
        self._want(self._renew(), ())
        await self._writer.write()
        await self._commit(self.committed + 1, self._leaving() if complete else self._named)

    async def _commit(self, change: int, gone: set[str]) -> None:
        self.committed = change
        self._gone -= gone
        self._named = set()
        self._touched.clear()
        await self._say(commit(change, ids_of(gone)))
        self._acknowledged.count("committed")

    async def _say(self, said: PolicyCommitIntent) -> None:
        self._writer.want({COMMIT_SUBJECT: said})
        await self._writer.write()

    def _leaving(self) -> set[str]:
        """What stands and is not desired, of what this replica has planned or taken over."""
        desired, standing = self._writer.desired, self._writer.standing
        if self._review:
            self._review = False
            self._gone |= {subject for subject in standing if is_policy(subject)}
        self._gone = {
            subject
            for subject in self._gone
            if subject not in desired and (s := standing.get(subject)) and s.digest is not None
        }
        return set(self._gone)


def ids_of(some: Iterable[str]) -> list[str]:
    """Ids of intents, from their subjects."""
    return ["/".join(subjects.split(subject)[1:]) for subject in some]
