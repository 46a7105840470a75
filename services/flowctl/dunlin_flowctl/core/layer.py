"""Programs of many intents side by side: which intent owns which key."""

from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from dunlin.model.ids import IntentId
from dunlin.openflow.flow import Program
from dunlin_flowctl.core.digest import Totals
from dunlin_flowctl.core.program import (
    Compiled,
    Conflict,
    Content,
    Key,
    MeterKey,
    Workshop,
    program_keys,
)


@dataclass(frozen=True, slots=True)
class Replaced:
    """One intent's part before and after a change; None: nothing there."""

    old: Compiled | None
    new: Compiled | None


Changes = dict[IntentId, Replaced]


def nobody(_key: Key) -> IntentId | None:
    """No layer comes before this one."""
    return None


class Layer:
    """
    At any moment no two intents of a layer own one key: the smallest id that claims it does.

    `taken` names the owner of a key in a layer that comes before this one: that owner wins.
    `conflicted`: intents that do not get all. `version`: another one whenever somebody gets
    something else. `totals`: what all get.
    """

    def __init__(
        self,
        workshop: Workshop,
        taken: Callable[[Key], IntentId | None] = nobody,
        *,
        keep: bool = False,
    ) -> None:
        """`keep`: see `Workshop.make`."""
        self._keep = keep
        self._workshop = workshop
        self._taken = taken
        self._programs: dict[IntentId, Program] = {}
        # The one claimant of a key, or all of them in order: most keys have one.
        self._claims: dict[Key, IntentId | tuple[IntentId, ...]] = {}
        self._effective: dict[IntentId, Compiled] = {}
        self.version = 0
        self.totals = Totals()
        self.conflicted: set[IntentId] = set()

    @property
    def effective(self) -> Mapping[IntentId, Compiled]:
        """What each intent gets; keys of different intents are disjoint."""
        return self._effective

    def owner(self, key: Key) -> IntentId | None:
        """The intent that gets `key` in this layer."""
        if self._taken(key) is not None:
            return None
        claimants = self._claimants(key)
        return claimants[0] if claimants else None

    def content(self, key: Key) -> Content | None:
        """What should stand at `key` by this layer; of meters only the owner is kept here."""
        owner = self.owner(key)
        if owner is None:
            return None
        part = self._effective[owner]
        if isinstance(key, MeterKey):
            return None
        return part.groups.get(key) if isinstance(key, int) else part.flows.get(key)

    def put(self, intent_id: IntentId, program: Program | None) -> Changes:
        """Replace the program of one intent (None: it is gone); every intent that changed."""
        before = self._programs.get(intent_id)
        if before == program:
            return {}
        old_keys, new_keys = program_keys(before), program_keys(program)
        affected = {intent_id}
        for key in old_keys - new_keys:
            affected |= self._withdraw(key, intent_id)
        fresh = new_keys - old_keys
        if self._claims.keys().isdisjoint(fresh):
            self._claims.update(dict.fromkeys(fresh, intent_id))
        else:
            for key in fresh:
                affected |= self._claim(key, intent_id)
        if program is None:
            del self._programs[intent_id]
        else:
            self._programs[intent_id] = program
        alone = len(affected) == 1 and intent_id not in self.conflicted
        return self._rebuild(affected, certain=alone and self._taken is nobody)

    def claims_any(self, keys: AbstractSet[Key]) -> bool:
        """Some intent of this layer asks for one of these."""
        return not self._claims.keys().isdisjoint(keys)

    def refresh(self, keys: Iterable[Key]) -> Changes:
        """The layer before this one took or gave back these keys."""
        affected: set[IntentId] = set()
        for key in keys:
            affected.update(self._claimants(key))
        return self._rebuild(affected)

    def _claimants(self, key: Key) -> tuple[IntentId, ...]:
        claimants = self._claims.get(key, ())
        return (claimants,) if isinstance(claimants, str) else claimants

    def _claim(self, key: Key, intent_id: IntentId) -> set[IntentId]:
        others = self._claimants(key)
        if not others:
            self._claims[key] = intent_id
            return set()
        self._claims[key] = tuple(sorted((*others, intent_id)))
        return set(others)

    def _withdraw(self, key: Key, intent_id: IntentId) -> set[IntentId]:
        others = tuple(other for other in self._claimants(key) if other != intent_id)
        if others:
            self._claims[key] = others[0] if len(others) == 1 else others
            return set(others)
        del self._claims[key]
        return set()

    def _rebuild(self, affected: Iterable[IntentId], *, certain: bool = False) -> Changes:
        """`certain`: nobody else claims any key of theirs."""
        changes: Changes = {}
        for intent_id in affected:
            old, new = self._effective.get(intent_id), self._make(intent_id, certain=certain)
            if new is not None and new.conflicts:
                self.conflicted.add(intent_id)
            else:
                self.conflicted.discard(intent_id)
            if new is None:
                self._effective.pop(intent_id, None)
            elif old is not None and _same(old, new):
                continue
            else:
                self._effective[intent_id] = new
            self.totals = self.totals.minus(_totals(old)).plus(_totals(new))
            if old is not new:
                changes[intent_id] = Replaced(old, new)
        self.version += bool(changes)
        return changes

    def _make(self, intent_id: IntentId, *, certain: bool) -> Compiled | None:
        program = self._programs.get(intent_id)
        if program is None:
            return None
        lost = () if certain else self._lost(intent_id, program)
        return self._workshop.make(intent_id, program, lost, keep=self._keep)

    def _lost(self, intent_id: IntentId, program: Program) -> tuple[Conflict, ...]:
        lost = []
        for key in program_keys(program):
            winner = self._taken(key)
            if winner is None:
                claim = self._claims[key]
                winner = claim if isinstance(claim, str) else claim[0]
            if winner != intent_id:
                lost.append(Conflict(key, winner))
        return tuple(sorted(lost, key=str))


def _totals(part: Compiled | None) -> Totals:
    return part.totals if part is not None else Totals(0)


def _same(old: Compiled, new: Compiled) -> bool:
    """A rebuild that gave the same part again."""
    return old is new or (
        old.conflicts == new.conflicts
        and old.flows == new.flows
        and old.groups == new.groups
        and old.meters == new.meters
    )


def recompute(programs: Mapping[IntentId, Program]) -> dict[Key, tuple[IntentId, Content]]:
    """Who gets what, from scratch: the oracle of `Layer`."""
    result: dict[Key, tuple[IntentId, Content]] = {}
    for intent_id in sorted(programs):
        program = programs[intent_id]
        for group in program.groups:
            result.setdefault(group.group_id, (intent_id, group))
        for flow in program.flows:
            result.setdefault(flow.key, (intent_id, flow))
    return result
