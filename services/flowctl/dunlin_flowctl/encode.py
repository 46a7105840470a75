"""Change sets as bundles of bytes: encoded once, written to every switch that needs the same."""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field

from dunlin.model.ids import IntentId
from dunlin.openflow import codec
from dunlin.openflow.flow import Flow, Group
from dunlin.pipeline.layout import POLICY_TABLES
from dunlin_flowctl.core.delta import ChangeSet, Step
from dunlin_flowctl.core.digest import add_message

# Every bundle of every session has the same ids, so that its bytes can be shared: a session writes
# one bundle at a time and waits for its commit.
BUNDLE_ID = 1
SHARED_XID = 0x1000_0000
OWN_XID = 0x2000_0000
OPEN_XID = 0x3000_0000
COMMIT_XID = 0x3000_0001
OPEN = codec.encode_bundle_open(BUNDLE_ID, OPEN_XID)
COMMIT = codec.encode_bundle_commit(BUNDLE_ID, COMMIT_XID)


class Unencodable(Exception):
    """Intents that OpenFlow has no bytes for: id -> reason; None: a flow that nothing explains."""

    def __init__(self, reasons: dict[IntentId | None, str]) -> None:
        super().__init__("; ".join(reasons.values()))
        self.reasons = reasons


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Bundle-add messages of consecutive xids, and the intent behind each."""

    data: bytes
    first_xid: int
    intents: tuple[IntentId | None, ...]


@dataclass(frozen=True, slots=True)
class Bundle:
    """
    What is written between open and commit; `data`: all of it with these, if it is ready.

    `void`: it only takes back what the switch says of itself.
    """

    segments: tuple[Segment, ...]
    data: bytes = b""
    void: bool = False

    def __len__(self) -> int:
        return sum(len(segment.intents) for segment in self.segments)

    @property
    def size(self) -> int:
        """Bytes, open and commit included."""
        return sum(len(segment.data) for segment in self.segments) + len(OPEN) + len(COMMIT)

    def joined(self) -> "Bundle":
        """The same with its `data`."""
        parts = [segment.data for segment in self.segments]
        return Bundle(self.segments, b"".join((OPEN, *parts, COMMIT)))

    def intent_of(self, xid: int) -> IntentId | None:
        """The intent of the message with this xid; None for what no intent explains."""
        for segment in self.segments:
            if 0 <= xid - segment.first_xid < len(segment.intents):
                return segment.intents[xid - segment.first_xid]
        return None


Phases = tuple[Segment, ...]


class Batches:
    """
    A change set that many switches need and that one bundle does not hold: cut, encoded once.

    Each switch writes the same bytes; who comes first encodes, the next part while the switch is
    busy with the one before.
    """

    def __init__(self, changes: ChangeSet, limit: int) -> None:
        self.changes = changes
        rest = ([step for step in phase if not is_policy(step)] for phase in changes.phases)
        self._cuts = [*(list(cut(phase, limit)) for phase in rest), [policy_steps(changes)]]
        self._made: dict[tuple[int, int], asyncio.Task[Segment]] = {}

    async def policy(self) -> Segment:
        """What goes into the first bundle, whole; maybe nothing. Raises as `phase`."""
        return await asyncio.shield(self._part(len(self._cuts) - 1, 0))

    async def phase(self, number: int) -> AsyncIterator[Segment]:
        """The segments of one phase, in order. Raises as `encode_phases`."""
        for index in range(len(self._cuts[number])):
            made = self._part(number, index)
            if index + 1 < len(self._cuts[number]):
                self._part(number, index + 1)
            yield await asyncio.shield(made)

    def _part(self, number: int, index: int) -> "asyncio.Task[Segment]":
        made = self._made.get((number, index))
        if made is None:
            work = asyncio.to_thread(encode_segment, self._cuts[number][index], SHARED_XID)
            made = self._made[number, index] = asyncio.create_task(work)
            # Who waits for it gets the error too; nobody may be left to.
            made.add_done_callback(lambda task: task.cancelled() or task.exception())
        return made


@dataclass
class ProgramCache:
    """
    Whole shared change sets, as bytes; the least used go first.

    `changes_max`, `batches_max`: how many of each are kept. `shared_used`, `shared_made`: shared
    change sets asked for and encoded so far.
    """

    changes_max: int = 64
    batches_max: int = 2
    shared_used: int = 0
    shared_made: int = 0
    _changes: OrderedDict[object, tuple[ChangeSet, Phases]] = field(default_factory=OrderedDict)
    _whole: OrderedDict[object, Bundle] = field(default_factory=OrderedDict)
    _batches: OrderedDict[object, Batches] = field(default_factory=OrderedDict)

    def batches(self, key: object, make: Callable[[], ChangeSet], limit: int) -> Batches:
        """A large change set of many switches, made on first use; `key` names it."""
        self.shared_used += 1
        found = self._batches.get((key, limit))
        if found is None:
            self.shared_made += 1
            found = self._batches[key, limit] = Batches(make(), limit)
            if len(self._batches) > self.batches_max:
                self._batches.popitem(last=False)
        return found

    def shared(self, key: object, changes: ChangeSet) -> Phases:
        """The four phases of a change set that many switches need; `key` names it."""
        self.shared_used += 1
        found = self._changes.get(key)
        if found is None:
            self.shared_made += 1
            found = self._changes[key] = (changes, encode_phases(changes, SHARED_XID))
            if len(self._changes) > self.changes_max:
                self._changes.popitem(last=False)
        return found[1]

    def whole(self, key: object, changes: ChangeSet) -> Bundle:
        """One bundle of nothing but a shared change set, its bytes put together once."""
        found = self._whole.get(key)
        if found is None:
            found = self._whole[key] = interleave(self.shared(key, changes), ()).joined()
            if len(self._whole) > self.changes_max:
                self._whole.popitem(last=False)
        else:
            self.shared_used += 1
        return found

    def known(self, key: object) -> ChangeSet | None:
        """The shared change set of this name, if a switch has had it lately."""
        found = self._changes.get(key)
        return found[0] if found is not None else None


def encode_phases(changes: ChangeSet, first_xid: int) -> Phases:
    """
    One segment a phase.

    Raises:
        Unencodable: naming every intent that cannot be written.
    """
    segments = []
    for steps in changes.phases:
        segments.append(encode_segment(steps, first_xid))
        first_xid += len(steps)
    return tuple(segments)


def encode_segment(steps: Sequence[Step], first_xid: int) -> Segment:
    """Steps in their order. Raises Unencodable: naming all."""
    reasons: dict[IntentId | None, str] = {}
    parts = []
    for xid, step in enumerate(steps, first_xid):
        try:
            parts.append(codec.encode_bundle_add(BUNDLE_ID, encode_step(step), xid))
        except codec.CannotEncode as error:
            reasons.setdefault(step.intent_id, str(error))
    if reasons:
        raise Unencodable(reasons)
    return Segment(b"".join(parts), first_xid, tuple([step.intent_id for step in steps]))


def cut(steps: list[Step], limit: int) -> Iterator[list[Step]]:
    """At most `limit` at a time."""
    for start in range(0, len(steps), limit):
        yield steps[start : start + limit]


def encode_step(step: Step) -> bytes:
    """The flow or group modification of one step, xid 0."""
    if step.command == "delete":
        if isinstance(step.content, Group):
            return codec.encode_group(step.content, "delete")
        return codec.encode_flow(step.content, "delete_strict")
    message = step.message or add_message(step.content)
    return message if step.command == "add" else codec.as_modify(message)


def interleave(shared: Phases, own: Phases) -> Bundle:
    """One bundle of both: each phase of both before the next; `own` may be none at all."""
    if not own:
        return Bundle(tuple([segment for segment in shared if segment.intents]))
    both = (segment for pair in zip(shared, own, strict=True) for segment in pair)
    return Bundle(tuple(segment for segment in both if segment.intents))


def chunks(changes: ChangeSet, limit: int) -> Iterator[list[Step]]:
    """
    All steps, at most `limit` at a time: a bundle each still makes before it breaks.

    First, and together however many, those of the policy tables (`policy_steps`).
    """
    policy = policy_steps(changes)
    rest = [step for phase in changes.phases for step in phase if not is_policy(step)]
    if len(changes) <= limit:
        policy, rest = [], policy + rest
    if policy:
        yield policy
    yield from cut(rest, limit)


def policy_steps(changes: ChangeSet) -> list[Step]:
    """
    What one bundle must hold: no packet may meet half of a change of policy.

    It comes before everything else: nothing may pass before its policies stand. Flows of policy
    refer to no groups.
    """
    return [step for phase in changes.phases for step in phase if is_policy(step)]


def is_policy(step: Step) -> bool:
    """A flow of a table where policy is decided."""
    return isinstance(step.content, Flow) and step.content.table in POLICY_TABLES
