"""What happens to the metrics service."""

from dataclasses import dataclass
from typing import TypeAlias

from dunlin.bus.base import Record
from dunlin_metrics.counters import Counters


@dataclass(frozen=True, slots=True)
class StreamRead:
    """Records of a stream; `reset`: it is new. `caught_up`: up to its end."""

    stream: str
    records: tuple[Record, ...]
    reset: bool = False
    caught_up: bool = False


@dataclass(frozen=True, slots=True)
class Polled:
    """The counters of one switch."""

    counters: Counters
    now_ms: int


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passes: what has been gone since `before_ms` is forgotten."""

    before_ms: int


Event: TypeAlias = StreamRead | Polled | Tick


@dataclass(frozen=True, slots=True)
class Outcome:
    """
    What the shell must show.

    `bad`: (kind, text) of records that do not parse. `latencies_ms`: new programming latencies,
    (node, ms).
    """

    bad: tuple[tuple[str, str], ...] = ()
    latencies_ms: tuple[tuple[str, float], ...] = ()


NOTHING = Outcome()
