"""Work as bundles of bytes, shared between switches wherever they need the same."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

from dunlin.model.ids import IntentId
from dunlin.openflow.flow import Flow
from dunlin_flowctl.core.delta import ChangeSet, Step, diff
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.core.digest import UNKNOWN, Digests, digest_flows, unsaid
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
    encode_phases,
    encode_segment,
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
    `digests`: what the switch says of itself afterwards.
    """

    own: ChangeSet
    shared: ChangeSet | None = None
    key: object = None
    holds: tuple[int, int] = (0, 0)
    digests: Digests = UNKNOWN

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
    certain: bool = False,
    known: Callable[[object], ChangeSet | None] = lambda _key: None,
) -> Plan:
    """
    The least change for this work.

    `certain`: afterwards the switch holds all that it should and nothing else. `known`: shared
    changes that another switch has had.
    """
    after = digests_after(desired, switch) if certain else UNKNOWN
    shared: Parts = {}
    own: Parts = {}
    for intent_id, part in work.parts.items():
        (shared if desired.is_shared(intent_id) else own)[intent_id] = part
    if switch.stray_groups or any(map(_contested, own.values())):
        changes = _diff_all(desired, switch, work, may_delete=may_delete)
        changes.say(digest_flows(switch.digests, after))
        return Plan(changes, digests=after)

    def taken(key: Key) -> object:
        owner = switch.own.owner(key)
        return desired.shared.owner(key) or (None if owner in own else owner)

    own_changes = diff(own.values(), may_delete=may_delete, owned=taken) if own else ChangeSet()
    if not shared:
        if not len(own_changes) and after.own == switch.digests.own:
            # What it is made from is no reason to write, where the same comes of it.
            after = after._replace(source=switch.digests.source)
        own_changes.say(digest_flows(switch.digests, after))
        return Plan(own_changes, digests=after)
    serials = ((_serial(p.old), _serial(p.new)) for p in shared.values())
    key = (may_delete, after.shared, *serials)
    shared_changes = known(key)
    if shared_changes is None:
        shared_changes = diff(
            shared.values(), may_delete=may_delete, owned=lambda key: _other(desired, key, shared)
        )
        shared_changes.say(digest_flows(UNKNOWN, Digests(after.shared)))
    # Of the shared part all switches are told the same.
    said = switch.digests._replace(shared=after.shared or switch.digests.shared)
    own_changes.say(digest_flows(said, after))
    return Plan(own_changes, shared_changes, key, digests=after)


def digests_after(desired: Desired, switch: Switch) -> Digests:
    """Of all that this switch should hold now."""
    return Digests(desired.shared.totals.digest, switch.own.totals.digest, desired.source(switch))


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


def plan_fresh_switch(
    desired: Desired, switch: Switch, cache: ProgramCache, limit: int, *, certain: bool = False
) -> Plan:
    """
    All that a switch should hold that holds nothing; of the shared part nothing is done anew.

    `certain`: as for `plan_work`.
    """
    shared = desired.shared
    after = digests_after(desired, switch) if certain else UNKNOWN

    def whole() -> ChangeSet:
        changes = plan_fresh(shared.effective.values())
        changes.say(digest_flows(UNKNOWN, Digests(after.shared)))
        return changes

    key = ("all", shared.version, certain)
    batches = cache.batches(key, whole, limit)
    own = plan_fresh(switch.own.effective.values())
    own.say(digest_flows(UNKNOWN, after._replace(shared=0)))
    both = (own, batches.changes)
    holds = (sum(len(c.flows_put) for c in both), sum(len(c.groups_put) for c in both))
    return Plan(own, batches.changes, key, holds, after)


def at_once(plan: Plan, cache: ProgramCache, limit: int) -> Bundle | None:
    """The one bundle of a small plan, with its `data`; None: see `bundles`."""
    if not 0 < len(plan) <= min(limit, IN_THREAD_MIN):
        return None
    try:
        if plan.shared is None:
            return interleave(encode_phases(plan.own, OWN_XID), ()).joined()
        if not len(plan.own):
            return cache.whole(plan.key, plan.shared)
        shared = cache.shared(plan.key, plan.shared)
        return interleave(shared, encode_phases(plan.own, OWN_XID)).joined()
    except Unencodable:
        return None


async def bundles(
    plan: Plan, cache: ProgramCache, limit: int, *, void: bool = False
) -> AsyncIterator[Bundle]:
    """
    The bundles of a plan, each made when the one before has been written.

    `void`: of several the first takes back what the switch says of itself; the last says it anew.

    Raises:
        Unencodable: naming intents, before anything of their bundle is written.
    """
    if plan.shared is not None and len(plan) <= limit:
        shared = cache.shared(plan.key, plan.shared)
        yield interleave(shared, encode_phases(plan.own, OWN_XID) if len(plan.own) else shared[:0])
        return
    if void and len(plan) > limit and (said := _void(plan)):
        yield Bundle((encode_segment(said, OWN_XID),), void=True)
    if plan.shared is None:
        for steps in chunks(plan.own, limit):
            yield Bundle((await _segment(steps),))
        return
    shared_changes = plan.shared
    batches = cache.batches(plan.key, lambda: shared_changes, limit)
    policy = (await batches.policy(), await _segment(policy_steps(plan.own)))
    if first := tuple(segment for segment in policy if segment.intents):
        yield Bundle(first)
    *phases, said = plan.own.phases
    for number, own in enumerate(phases):
        async for segment in batches.phase(number):
            yield Bundle((segment,))
        for steps in cut([step for step in own if not is_policy(step)], limit):
            yield Bundle((await _segment(steps),))
    last = [segment async for segment in batches.phase(len(phases))]
    if said:
        last.append(encode_segment(said, OWN_XID))
    if last:
        yield Bundle(tuple(last))


def _void(plan: Plan) -> list[Step]:
    """Until all of it is written, nothing is known of what it changes."""
    said = [step.content for c in (plan.own, plan.shared) if c is not None for step in c.said]
    flows = unsaid(flow for flow in said if isinstance(flow, Flow))
    return [Step("add", flow, None) for flow in flows]


async def _segment(steps: list[Step]) -> Segment:
    if len(steps) < IN_THREAD_MIN:
        return encode_segment(steps, OWN_XID)
    return await asyncio.to_thread(encode_segment, steps, OWN_XID)
