"""
Totals that only grow, out of counters that begin anew whenever something is installed anew. Pure.

A source is one counter on one switch (a port, a flow, a group); a target is what it counts for (a
Pod, a pair of nodes, an endpoint). Between two readings of a source a target grows by the
difference, or, when any number of the source fell, by all of the new reading. A source that is
missing from a reading keeps its last one for a while: it may have been left out only because its
reader had just started.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

Target: TypeAlias = tuple[str, ...]
"""
("pod", namespace, name, node), ("route", source, destination), ("endpoint", namespace, …),
("rule", policy, direction, index, action, name), ("denied", direction, policy, …),
("bandwidth", namespace, name, direction).
"""

Source: TypeAlias = tuple[str, ...]
"""("port", name), ("flow", …), ("group", id), ("traffic", number): within one switch."""


class Part(NamedTuple):
    """Numbers that count for one target."""

    target: Target
    values: tuple[int, ...]


class Sample(NamedTuple):
    """One reading of one source; its parts begin anew together, and keep their order."""

    source: Source
    parts: tuple[Part, ...]


@dataclass
class _Reading:
    parts: tuple[Part, ...]
    at_ms: int


@dataclass
class Total:
    """
    What has been counted for a target. `seen_ms`: when a source counted for it last.

    `per_second`: growth between the last two readings of the switch that counted last.
    """

    values: list[int]
    seen_ms: int
    per_second: list[float]


@dataclass
class Meter:
    """Readings by switch and source, totals by target; when each switch was read last."""

    readings: dict[str, dict[Source, _Reading]] = field(default_factory=dict)
    totals: dict[Target, Total] = field(default_factory=dict)
    read_ms: dict[str, int] = field(default_factory=dict)

    def account(self, node: str, samples: Iterable[Sample], now_ms: int) -> dict[Target, list[int]]:
        """Take one reading of a switch; returns by how much each target grew."""
        readings = self.readings.setdefault(node, {})
        grown: dict[Target, list[int]] = {}
        for sample in samples:
            last = readings.get(sample.source)
            for target, values in _growth(last.parts if last else (), sample.parts):
                _add(grown, target, values)
            readings[sample.source] = _Reading(sample.parts, now_ms)
        elapsed_ms = now_ms - self.read_ms.get(node, now_ms)
        self.read_ms[node] = now_ms
        for target, more in grown.items():
            self._grow(target, more, now_ms, elapsed_ms)
        return grown

    def _grow(self, target: Target, more: list[int], now_ms: int, elapsed_ms: int) -> None:
        total = self.totals.get(target)
        if total is None:
            total = self.totals[target] = Total([0] * len(more), now_ms, [0.0] * len(more))
        elif elapsed_ms > 0:
            total.per_second = [value * 1000 / elapsed_ms for value in more]
        total.values = [a + b for a, b in zip(total.values, more, strict=True)]
        total.seen_ms = now_ms

    def forget(self, before_ms: int) -> None:
        """Drop readings and totals that nothing has counted for since then."""
        for node, readings in list(self.readings.items()):
            # A switch that cannot be read at all keeps everything: it will be read again.
            if all(reading.at_ms < before_ms for reading in readings.values()):
                continue
            self.readings[node] = {
                source: reading
                for source, reading in readings.items()
                if reading.at_ms >= before_ms
            }
        kept = {
            part.target
            for readings in self.readings.values()
            for reading in readings.values()
            for part in reading.parts
        }
        for target in [t for t, total in self.totals.items() if total.seen_ms < before_ms]:
            if target not in kept:
                del self.totals[target]

    def forget_switch(self, node: str) -> None:
        """A node that is no more."""
        self.readings.pop(node, None)
        self.read_ms.pop(node, None)

    def of(self, kind: str) -> Iterator[tuple[Target, Total]]:
        """All totals of one kind of target."""
        return ((target, total) for target, total in self.totals.items() if target[0] == kind)


def _growth(old: tuple[Part, ...], new: tuple[Part, ...]) -> Iterator[tuple[Target, list[int]]]:
    """
    What each part grew by.

    Parts are compared by position, also where a position counts for another target than before: if
    nothing fell, the counters were not begun anew, and only what is new belongs to the new target.
    """
    fell = any(
        now < then
        for before, after in zip(old, new, strict=False)
        for then, now in zip(before.values, after.values, strict=True)
    )
    for position, part in enumerate(new):
        then = (0,) * len(part.values)
        if position < len(old) and not fell:
            then = old[position].values
        yield part.target, [a - b for a, b in zip(part.values, then, strict=True)]


def _add(table: dict[Target, list[int]], target: Target, values: list[int]) -> None:
    known = table.get(target)
    table[target] = values if known is None else [a + b for a, b in zip(known, values, strict=True)]
