"""The flows that a change adds to switches and takes from them: compiled, compared by key."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dunlin.events.intents import AnyIntent
from dunlin.openflow.flow import Flow
from dunlin.pipeline import compile_intent
from dunlin.subjects import ALL_SCOPE


@dataclass(frozen=True, slots=True)
class Delta:
    """Flows of one switch (or of what every switch needs)."""

    added: int = 0
    removed: int = 0
    modified: int = 0

    def __add__(self, other: "Delta") -> "Delta":
        return Delta(
            self.added + other.added,
            self.removed + other.removed,
            self.modified + other.modified,
        )


NONE = Delta()


def deltas(old: Iterable[AnyIntent], new: Iterable[AnyIntent]) -> Mapping[str, Delta]:
    """By scope: "all" for every switch alike, else a node's own."""
    before, after = _by_scope(old), _by_scope(new)
    found = {
        scope: _delta(before.get(scope, {}), after.get(scope, {}))
        for scope in sorted(before.keys() | after.keys())
    }
    return {scope: delta for scope, delta in found.items() if delta != NONE}


def _by_scope(intents: Iterable[AnyIntent]) -> dict[str, dict[object, Flow]]:
    """No intent of policy needs to know the switch."""
    found: dict[str, dict[object, Flow]] = defaultdict(dict)
    for intent in intents:
        for flow in compile_intent(intent, None).flows:
            found[intent.scope][flow.key] = flow
    return found


def _delta(before: Mapping[object, Flow], after: Mapping[object, Flow]) -> Delta:
    return Delta(
        added=len(after.keys() - before.keys()),
        removed=len(before.keys() - after.keys()),
        modified=sum(before[key] != after[key] for key in before.keys() & after.keys()),
    )


def on_switch(found: Mapping[str, Delta], node: str) -> Delta:
    """Everything that changes on the switch of a node."""
    return found.get(ALL_SCOPE, NONE) + found.get(node, NONE)
