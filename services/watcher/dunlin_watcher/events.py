"""What happens to the watcher: the events that `dunlin_watcher.core.step` takes, and its answer."""

from dataclasses import dataclass
from typing import TypeAlias

import msgspec

from dunlin.bus.base import Record
from dunlin_watcher.state import Address


@dataclass(frozen=True, slots=True)
class LeadershipChanged:
    """We become active or standby: what we saw of the API is not believed any more."""


@dataclass(frozen=True, slots=True)
class ListStarted:
    """A list of all objects of `kind` begins."""

    kind: str


@dataclass(frozen=True, slots=True)
class Seen:
    """The API holds this object (JSON), in a list or by an ADDED or MODIFIED event."""

    kind: str
    raw: bytes | msgspec.Raw
    now_ms: int


@dataclass(frozen=True, slots=True)
class Gone:
    """A DELETED event; `raw` is the object's last state."""

    kind: str
    raw: bytes | msgspec.Raw
    now_ms: int


@dataclass(frozen=True, slots=True)
class ListEnded:
    """The list of `kind` is complete as of `version`: what was not in it does not exist."""

    kind: str
    version: str


@dataclass(frozen=True, slots=True)
class Bookmark:
    """The watch of `kind` has shown everything up to `version`."""

    kind: str
    version: str


@dataclass(frozen=True, slots=True)
class StreamRead:
    """Records of the fact stream; `reset`: it is new, forget it. `caught_up`: up to its end."""

    epoch: str
    records: tuple[Record, ...]
    reset: bool = False
    caught_up: bool = False


@dataclass(frozen=True, slots=True)
class Published:
    """The message taken for `address` has been stored as `seq`."""

    address: Address
    seq: int


@dataclass(frozen=True, slots=True)
class Refused:
    """It was not stored. `last`: what the subject holds, if looked up (else: try again)."""

    address: Address
    last: Record | None = None
    looked_up: bool = False


Event: TypeAlias = (
    LeadershipChanged
    | ListStarted
    | Seen
    | Gone
    | ListEnded
    | Bookmark
    | StreamRead
    | Published
    | Refused
)


@dataclass(frozen=True, slots=True)
class Report:
    """What was wrong with the input, new since the last time: for logs and counters."""

    kind: str
    bad: tuple[tuple[str, str], ...] = ()
    """(word for metrics, text that names object and field)"""
    unsupported: tuple[tuple[str, str], ...] = ()
    """(field, object)"""


NOTHING = Report("")
