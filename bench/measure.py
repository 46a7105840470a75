"""Rounds that take turns, medians with their spread, and tables of them."""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table as RichTable

METRICS_ACROSS_MAX = 3
"""A table of more metrics has them as lines."""


class Unavailable(Exception):
    """A bench cannot run on this machine; the message says what is missing."""


@dataclass(frozen=True, slots=True)
class Options:
    """`quick`: fewer rounds and less work, for a look; ratios are rougher."""

    quick: bool = False
    progress: Callable[[str], None] = lambda _text: None

    def rounds(self, full: int, quick: int = 2) -> int:
        """How many rounds."""
        return quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Metric:
    """What a column shows. `lower_is_better`: a ratio below 1 is good."""

    name: str
    unit: str
    lower_is_better: bool = True
    digits: int = 1


@dataclass(slots=True)
class Row:
    """One way: values by metric name, one a round."""

    name: str
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, **values: float) -> None:
        """The figures of one round."""
        for name, value in values.items():
            self.values.setdefault(name, []).append(value)


@dataclass(slots=True)
class Table:
    """Ways side by side. `base`: the row that ratios refer to; `notes` are printed below."""

    title: str
    metrics: Sequence[Metric]
    base: str
    rows: dict[str, Row] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def row(self, name: str) -> Row:
        """The row of a way, made on first use."""
        return self.rows.setdefault(name, Row(name))

    def ratio(self, row: Row, metric: Metric) -> tuple[float, float, float] | None:
        """
        (median, lowest, highest) of a row's figures over the base row's of the same round.

        None: one of them has no such figure.
        """
        base = self.rows[self.base].values.get(metric.name) if self.base in self.rows else None
        mine = row.values.get(metric.name)
        if not base or not mine:
            return None
        return ratios(mine, base)

    def as_json(self) -> dict[str, Any]:
        """Everything, raw figures included."""
        return {
            "title": self.title,
            "base": self.base,
            "metrics": {
                m.name: {"unit": m.unit, "lower_is_better": m.lower_is_better} for m in self.metrics
            },
            "rows": {row.name: self._row_json(row) for row in self.rows.values()},
            "notes": self.notes,
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for metric in self.metrics:
            values = row.values.get(metric.name)
            if not values:
                continue
            ratio = self.ratio(row, metric)
            found[metric.name] = {
                "median": statistics.median(values),
                "values": values,
                "ratio": None
                if ratio is None
                else dict(zip(("median", "min", "max"), ratio, strict=True)),
            }
        return found


def ratios(mine: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """(median, lowest, highest) of `mine[i] / base[i]`, for the rounds that both have."""
    each = [a / b for a, b in zip(mine, base, strict=False) if b]
    if not each:
        return (float("nan"),) * 3
    return statistics.median(each), min(each), max(each)


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` (0 … 1) of all values do not exceed."""
    ordered = sorted(values)
    index = max(0, -int(-share * len(ordered) // 1) - 1)
    return ordered[min(index, len(ordered) - 1)]


def at_rest() -> None:
    """
    What is loaded stays, and is not looked at for garbage any more.

    A process that measures others holds a cluster itself: its collector's 90 ms were their p99.
    """
    gc.collect()
    gc.freeze()


def take_turns(
    ways: Mapping[str, Callable[[], Mapping[str, float]]],
    table: Table,
    rounds: int,
    progress: Callable[[str], None] = lambda _text: None,
) -> None:
    """A B A B …: each way once a round, every second round the other way about."""
    for number in range(rounds):
        order = list(ways) if number % 2 == 0 else list(ways)[::-1]
        for name in order:
            progress(f"{table.title}: round {number + 1} of {rounds}: {name}")
            table.row(name).add(**ways[name]())
    table.rows = {name: table.rows[name] for name in (*ways, *(set(table.rows) - set(ways)))}


def show(table: Table, console: Console) -> None:
    """A table for people: median (lowest-highest), and the ratio to the base row."""
    shown = RichTable(title=table.title, title_justify="left", title_style="bold")
    if len(table.metrics) > METRICS_ACROSS_MAX:
        _down(table, shown)
    else:
        _across(table, shown)
    console.print(shown)
    for note in table.notes:
        console.print(f"  {note}", style="dim", highlight=False)


def _across(table: Table, shown: RichTable) -> None:
    """A line a way."""
    shown.add_column("way", no_wrap=True)
    for metric in table.metrics:
        shown.add_column(_head(metric), justify="right")
        shown.add_column("ratio", justify="right")
    for row in table.rows.values():
        cells = [row.name]
        for metric in table.metrics:
            cells += _cells(table, row, metric)
        shown.add_row(*cells)


def _down(table: Table, shown: RichTable) -> None:
    """A line a metric; below each figure its ratio."""
    shown.show_lines = True
    shown.add_column("")
    for row in table.rows.values():
        shown.add_column(row.name, justify="right")
    for metric in table.metrics:
        cells = [_head(metric)]
        for row in table.rows.values():
            value, ratio = _cells(table, row, metric)
            cells.append(f"{value}\n= {ratio}" if ratio else value)
        shown.add_row(*cells)


def _head(metric: Metric) -> str:
    better = "less" if metric.lower_is_better else "more"
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{metric.name}{unit} [dim]{better} is better[/]"


def _cells(table: Table, row: Row, metric: Metric) -> tuple[str, str]:
    values = row.values.get(metric.name)
    if not values:
        return "-", ""
    text = _number(statistics.median(values), metric.digits)
    if len(values) > 1:
        low, high = (_number(v, metric.digits) for v in (min(values), max(values)))
        text += f" [dim]({low}-{high})[/]"
    ratio = table.ratio(row, metric)
    if ratio is None:
        return text, ""
    if row.name == table.base:
        return text, "1"
    spread = f" [dim]({ratio[1]:.2f}-{ratio[2]:.2f})[/]" if len(values) > 1 else ""
    return text, f"[bold]{ratio[0]:.2f}[/]{spread}"


def _number(value: float, digits: int) -> str:
    return f"{value:,.{digits}f}"
