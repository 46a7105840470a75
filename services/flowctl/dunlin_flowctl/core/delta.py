"""Ordered change sets: make before break."""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal

import msgspec

from dunlin.model.ids import IntentId
from dunlin.openflow.flow import Flow, Group
from dunlin_flowctl.core.layer import Replaced
from dunlin_flowctl.core.program import Content, Key

Command = Literal["add", "modify", "delete"]


class Step(msgspec.Struct, frozen=True, gc=False):
    """
    One message to a switch. Flows are always added (which replaces), so `modify` is for groups.

    `intent_id`: who asked for it; None for what no intent explains. `message`: the one that adds
    it, if that is known.
    """

    command: Command
    content: Content
    intent_id: IntentId | None
    message: bytes = b""


@dataclass(slots=True)
class ChangeSet:
    """
    Steps in five phases, to be written in this order.

    A group comes before the flows that name it and goes after them: OVS refuses a flow whose group
    is missing, and deletes the flows of a group that goes. `said`: what the switch says of itself
    when all that is done (`core.digest`). `deferred`: deletes left out, not
    allowed yet; `stray_groups`: ids of the groups among them.
    """

    groups_put: list[Step] = field(default_factory=list)
    flows_put: list[Step] = field(default_factory=list)
    flows_deleted: list[Step] = field(default_factory=list)
    groups_deleted: list[Step] = field(default_factory=list)
    said: list[Step] = field(default_factory=list)
    deferred: int = 0
    stray_groups: set[int] = field(default_factory=set)

    @property
    def phases(self) -> tuple[list[Step], ...]:
        """The five phases in order."""
        return (
            self.groups_put,
            self.flows_put,
            self.flows_deleted,
            self.groups_deleted,
            self.said,
        )

    def __len__(self) -> int:
        return sum(map(len, self.phases))

    def put(self, content: Content, *, held: bool, who: IntentId, message: bytes = b"") -> None:
        """Add or replace one; `held`: the switch has something at its key."""
        if isinstance(content, Group):
            command: Command = "modify" if held else "add"
            self.groups_put.append(Step(command, content, who, message))
        else:
            self.flows_put.append(Step("add", content, who, message))

    def say(self, flows: Iterable[Flow]) -> None:
        """The switch says this of itself from now on."""
        self.said.extend(Step("add", flow, None) for flow in flows)

    def defer(self, content: Content) -> None:
        """Leave out a delete."""
        self.deferred += 1
        if isinstance(content, Group):
            self.stray_groups.add(content.group_id)

    def delete(self, content: Content, who: IntentId | None) -> None:
        """Delete one."""
        phase = self.flows_deleted if isinstance(content, Flow) else self.groups_deleted
        phase.append(Step("delete", content, who))


Entry = tuple[IntentId, Content, bytes]


def _entries(parts: Iterable[Replaced], side: Literal["old", "new"]) -> dict[Key, Entry]:
    entries: dict[Key, Entry] = {}
    for part in parts:
        compiled = part.old if side == "old" else part.new
        if compiled is not None:
            for key, content, message in compiled.items():
                entries[key] = (compiled.intent_id, content, message)
    return entries


def diff(
    parts: Iterable[Replaced],
    *,
    may_delete: bool,
    owned: Callable[[Key], object] = lambda _key: None,
    stray_groups: Collection[int] = (),
) -> ChangeSet:
    """
    The least change from the `old` to the `new` of some intents, in their order.

    `owned`: not None where an intent outside of `parts` has that key: then it stays.
    `stray_groups`: ids of groups that the switch holds although no `old` explains them.
    """
    parts = tuple(parts)
    old, new = _entries(parts, "old"), _entries(parts, "new")
    changes = ChangeSet()
    for key, (who, content, message) in new.items():
        held = old.get(key)
        if held is None or held[1] != content:
            is_held = held is not None or key in stray_groups
            changes.put(content, held=is_held, who=who, message=message)
    for key, (who, content, _) in old.items():
        if key in new or owned(key) is not None:
            continue
        if may_delete:
            changes.delete(content, who)
        else:
            changes.defer(content)
    return changes
