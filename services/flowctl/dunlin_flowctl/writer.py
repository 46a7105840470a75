"""Work as bundles of bytes, shared between switches wherever they need the same."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from dunlin.model.ids import IntentId
from dunlin.openflow.flow import Flow
from dunlin_flowctl.core.delta import ChangeSet, Step, diff
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.core.layer import Replaced
from dunlin_flowctl.core.program import FlowKey, Key
from dunlin_flowctl.core.switch import Switch, Work
from dunlin_flowctl.core.sync import plan_fresh
from dunlin_flowctl.encode import (
    OWN_XID,
    Bundle,
    ProgramCache,
    Segment,
    Unencodable,
    chunks,
    cut,
    interleave,
    is_policy,
    policy_steps,
)

IN_THREAD_MIN = 500
"""Steps from which encoding moves to a worker thread."""


@dataclass(frozen=True, slots=True)
class Plan:
    """
    What one piece of work changes on one switch.

    `shared`: what any switch with the same `key` needs, byte by byte; None: all is in `own`.
    `holds`: flows and groups of its intents afterwards; (0, 0) where it is not known.
    """

    own: ChangeSet
    shared: ChangeSet | None = None
    key: object = None
    holds: tuple[int, int] = (0, 0)

    def __len__(self) -> int:
        return len(self.own) + (len(self.shared) if self.shared is not None else 0)

    @property
    def deferred(self) -> int:
        """Deletes left out."""
        return self.own.deferred + (self.shared.deferred if self.shared is not None else 0)

    @property
    def stray_groups(self) -> set[int]:
        """Groups that stay although nothing explains them."""
        shared = self.shared.stray_groups if self.shared is not None else set()
        return self.own.stray_groups | shared

    def deleted_flows(self) -> Iterator[FlowKey]:
        """Keys of the flows that it deletes."""
        for changes in (self.own, self.shared):
            for step in changes.flows_deleted if changes is not None else ():
                if isinstance(step.content, Flow):
                    yield step.content.key


Parts = dict[IntentId, Replaced]


def plan_work(
    desired: Desired,
    switch: Switch,
    work: Work,
    *,
    may_delete: bool,
    known: Callable[[object], ChangeSet | None] = lambda _key: None,
) -> Plan:
    """The least change for this work. `known`: shared changes that another switch has had."""
    shared: Parts = {}
    own: Parts = {}
    for intent_id, part in work.parts.items():
        (shared if desired.is_shared(intent_id) else own)[intent_id] = part
    if switch.stray_groups or any(map(_contested, own.values())):
        return Plan(_diff_all(desired, switch, work, may_delete=may_delete))

    def taken(key: Key) -> object:
        owner = switch.own.owner(key)
        return desired.shared.owner(key) or (None if owner in own else owner)

    own_changes = diff(own.values(), may_delete=may_delete, owned=taken) if own else ChangeSet()
    if not shared:
        return Plan(own_changes)
    key = (may_delete, *((_serial(p.old), _serial(p.new)) for p in shared.values()))
    changes = known(key)
    if changes is None:
        changes = diff(
            shared.values(), may_delete=may_delete, owned=lambda key: _other(desired, key, shared)
        )
    return Plan(own_changes, changes, key)


def _other(desired: Desired, key: Key, parts: Parts) -> object:
    owner = desired.shared.owner(key)
    return None if owner in parts else owner


def _diff_all(desired: Desired, switch: Switch, work: Work, *, may_delete: bool) -> ChangeSet:
    return diff(
        work.parts.values(),
        may_delete=may_delete,
        owned=lambda key: desired.owner(switch.node, key, work.parts),
        stray_groups=switch.stray_groups,
    )


def _contested(part: Replaced) -> bool:
    """Something moves between this switch's own intents and the shared ones."""
    return any(side is not None and side.conflicts for side in (part.old, part.new))


def _serial(compiled: object) -> int:
    return getattr(compiled, "serial", 0)


def plan_fresh_switch(desired: Desired, switch: Switch, cache: ProgramCache, limit: int) -> Plan:
    """All that a switch should hold that holds nothing; of the shared part nothing is done anew."""
    shared = desired.shared
    key = ("all", shared.version)
    batches = cache.batches(key, lambda: plan_fresh(shared.effective.values()), limit)
    own = plan_fresh(switch.own.effective.values())
    both = (own, batches.changes)
    holds = (sum(len(c.flows_put) for c in both), sum(len(c.groups_put) for c in both))
    return Plan(own, batches.changes, key, holds)


def at_once(plan: Plan, cache: ProgramCache, limit: int) -> Bundle | None:
    """The one bundle of a small plan, with its `data`; None: see `bundles`."""
    if not 0 < len(plan) <= min(limit, IN_THREAD_MIN):
        return None
    try:
        if plan.shared is None:
            return interleave(cache.phases(plan.own, OWN_XID), ()).joined()
        if not len(plan.own):
            return cache.whole(plan.key, plan.shared)
        shared = cache.shared(plan.key, plan.shared)
        return interleave(shared, cache.phases(plan.own, OWN_XID)).joined()
    except Unencodable:
        return None


async def bundles(plan: Plan, cache: ProgramCache, limit: int) -> AsyncIterator[Bundle]:
    """
    The bundles of a plan, each made when the one before has been written.

    Raises:
        Unencodable: naming intents, before anything of their bundle is written.
    """
    if plan.shared is not None and len(plan) <= limit:
        shared = cache.shared(plan.key, plan.shared)
        yield interleave(shared, cache.phases(plan.own, OWN_XID) if len(plan.own) else shared[:0])
        return
    if plan.shared is None:
        for steps in chunks(plan.own, limit):
            yield Bundle((await _segment(cache, steps),))
        return
    shared_changes = plan.shared
    batches = cache.batches(plan.key, lambda: shared_changes, limit)
    policy = (await batches.policy(), await _segment(cache, policy_steps(plan.own)))
    if first := tuple(segment for segment in policy if segment.intents):
        yield Bundle(first)
    for number, own in enumerate(plan.own.phases):
        async for segment in batches.phase(number):
            yield Bundle((segment,))
        for steps in cut([step for step in own if not is_policy(step)], limit):
            yield Bundle((await _segment(cache, steps),))


async def _segment(cache: ProgramCache, steps: list[Step]) -> Segment:
    if len(steps) < IN_THREAD_MIN:
        return cache.segment(steps, OWN_XID)
    return await asyncio.to_thread(cache.segment, steps, OWN_XID)
