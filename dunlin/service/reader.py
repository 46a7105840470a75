"""
Records of a stream as typed values: what does not parse is left out, counted and named.

    pods = Table(AnyFact, metrics)
    async for batch in bus.follow(FACTS_STREAM, [subjects.facts_of("pod")]):
        for change in pods.apply(batch):
            ...
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, cast

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Batch, Record
from dunlin.events.facts import Fact
from dunlin.events.intents import Intent
from dunlin.service.metrics import Metrics

T = TypeVar("T")
log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Name:
    """
    What a subject says, so that a tombstone can be understood.

    `kind` of the fact or intent. `namespace`: of a fact ("" if none), or the scope of an intent.
    `name`: of a fact, or the key of an intent.
    """

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return "/".join(part for part in (self.kind, self.namespace, self.name) if part)


@dataclass(frozen=True, slots=True)
class Change(Generic[T]):
    """The new state of one object; `value` None: it is gone."""

    name: Name
    value: T | None
    record: Record


@dataclass(frozen=True, slots=True)
class Bad:
    """Input that could not be used. `reason`: one fixed word, for metrics; `detail`: for people."""

    name: Name | None
    reason: str
    detail: str
    record: Record


def name_of(subject: str) -> Name | None:
    """The name in a fact's or intent's subject; None for any other subject."""
    tokens = subjects.split(subject)
    if len(tokens) != 4:
        return None
    if tokens[0] == "fact":
        return Name(tokens[1], tokens[2], tokens[3])
    if tokens[0] == "intent":
        return Name(tokens[2], tokens[1], tokens[3])
    return None


def read(record: Record, union: Any) -> Change[Any] | Bad:
    """
    One record as a value of `union` (AnyFact, AnyIntent, or one of their members).

    A value whose own name is not the one of its subject is bad, too.
    """
    name = name_of(record.subject)
    if name is None:
        return Bad(None, "subject", "not the subject of a fact or intent", record)
    if record.is_tombstone:
        return Change(name, None, record)
    try:
        value = wire.decode(record.data, union)
    except msgspec.ValidationError as error:
        unknown = "Invalid value" in str(error) and "$.kind" in str(error)
        return Bad(name, "unknown-kind" if unknown else "shape", str(error), record)
    except (msgspec.DecodeError, ValueError) as error:
        return Bad(name, "syntax", str(error), record)
    if cast("Fact | Intent", value).subject != record.subject:
        return Bad(name, "name", f"the value calls itself {value.subject}", record)
    return Change(name, value, record)


@dataclass
class Table(Generic[T]):
    """
    The newest good value of each object, by subject; `seq`, `epoch` and `caught_up` of its stream.

    An object whose newest message is bad keeps the value it had; `bad` says so until a good one or
    a tombstone comes. A batch with `reset` empties the table first: whoever must not drop what
    stands (make before break) builds a second table and swaps when that one is complete.
    """

    union: Any
    metrics: Metrics | None = None
    values: dict[str, T] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)
    bad: dict[str, Bad] = field(default_factory=dict)
    seq: int = 0
    epoch: str = ""
    caught_up: bool = False

    def apply(self, batch: Batch) -> list[Change[T]]:
        """Take a batch in; the changes in their order, without what was bad."""
        if batch.reset:
            self.clear()
        changes = [change for record in batch.records if (change := self._take(record))]
        self.seq, self.epoch = batch.seq, batch.epoch
        # Once caught up, a table stays a whole state: a later batch is only newer.
        self.caught_up = self.caught_up or batch.caught_up
        return changes

    def clear(self) -> None:
        """Forget everything."""
        self.values.clear()
        self.seqs.clear()
        self.bad.clear()
        self.seq, self.caught_up = 0, False

    def of_kind(self, kind: str) -> Iterator[T]:
        """The values whose subject is of one kind; walks the whole table."""
        for subject, value in self.values.items():
            name = name_of(subject)
            if name is not None and name.kind == kind:
                yield value

    def _take(self, record: Record) -> Change[T] | None:
        found = read(record, self.union)
        if isinstance(found, Bad):
            self._refuse(found)
            return None
        self.bad.pop(record.subject, None)
        if found.value is None:
            self.values.pop(record.subject, None)
            self.seqs.pop(record.subject, None)
        else:
            self.values[record.subject] = found.value
            self.seqs[record.subject] = record.seq
        return found

    def _refuse(self, bad: Bad) -> None:
        self.bad[bad.record.subject] = bad
        kind = bad.name.kind if bad.name else "?"
        log.warning(
            "message left out",
            subject=bad.record.subject,
            object=str(bad.name or "?"),
            seq=bad.record.seq,
            reason=bad.reason,
            detail=bad.detail,
        )
        if self.metrics is not None:
            known = kind if bad.reason != "unknown-kind" else "?"
            self.metrics.bad_input(known, bad.reason)
