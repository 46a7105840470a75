"""The arithmetic behind the tables of `python -m bench`; no figure is asserted."""

import importlib
import io
from functools import partial

import pytest
from rich.console import Console

from bench.__main__ import BENCHES
from bench.measure import Metric, Table, percentile, ratios, show, take_turns

MS = Metric("time", "ms")


def test_ratio_is_of_the_same_round() -> None:
    """A round that is slow for both ways does not change their ratio."""
    assert ratios([2, 20, 4], [1, 10, 1]) == (2, 2, 4)


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.001, 1), (0.501, 51)]
)
def test_percentile_is_a_value_that_was_seen(share: float, expected: int) -> None:
    """The smallest value that so large a share does not exceed."""
    assert percentile(range(100, 0, -1), share) == expected


def test_ways_take_turns() -> None:
    """A B, then B A: neither is always first."""
    order: list[str] = []

    def way(name: str) -> dict[str, float]:
        order.append(name)
        return {"time": 1.0}

    table = Table("t", [MS], "a")
    take_turns({name: partial(way, name) for name in "ab"}, table, 3)
    assert "".join(order) == "abbaab"
    assert list(table.rows) == ["a", "b"]


def test_table_shows_and_tells_the_ratio() -> None:
    """Both for people and in the JSON."""
    table = Table("t", [MS], "base")
    table.row("base").add(time=2.0)
    table.row("other").add(time=3.0)
    out = io.StringIO()
    show(table, Console(file=out, width=100))
    assert "1.50" in out.getvalue()
    assert table.as_json()["rows"]["other"]["time"]["ratio"]["median"] == 1.5


@pytest.mark.parametrize("name", BENCHES)
def test_every_bench_can_be_run(name: str) -> None:
    """Each name is a module with `run`."""
    assert callable(importlib.import_module(f"bench.{name}").run)
