"""Dashboards, read by Grafana's own types, which are made from its schema."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

BOARDS = sorted(
    (Path(__file__).resolve().parents[2] / "k8s/base/observe/dashboards").glob("*.json")
)
COLUMNS = 24

register_default_plugins()


def read(path: Path) -> dict[str, Any]:
    """A dashboard as it is provisioned."""
    board: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return board


def lost(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """What is not the same after Grafana's types have read it and written it again."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key, value in ours.items():
            if key not in theirs:
                yield f"{where}.{key}"
            else:
                yield from lost(value, theirs[key], f"{where}.{key}")
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from lost(one, other, f"{where}[{number}]")
    elif ours != theirs:
        yield where


def as_grafana_reads(board: dict[str, Any]) -> Any:
    """There and back by the types of panels and of Prometheus' queries."""
    return json.loads(JSONEncoder().encode(Dashboard.from_json(deepcopy(board))))


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_grafana_knows_every_field(path: Path) -> None:
    """Nothing is lost: no field is misspelt, at the wrong place or of another type's panel."""
    board = read(path)
    assert list(lost(board, as_grafana_reads(board))) == []


def test_the_comparison_can_fail() -> None:
    """A misspelt field of the board, of a panel, of a query, of an option is found."""
    board = read(BOARDS[0])
    board["refrehs"] = "10s"
    panel = board["panels"][0]
    panel["gridPos"]["wide"] = 1
    panel["targets"][0]["expression"] = "up"
    panel["fieldConfig"]["defaults"]["units"] = "Bps"
    assert set(lost(board, as_grafana_reads(board))) == {
        ".refrehs",
        ".panels[0].gridPos.wide",
        ".panels[0].targets[0].expression",
        ".panels[0].fieldConfig.defaults.units",
    }


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_panels_fill_the_page_and_do_not_overlap(path: Path) -> None:
    """No two panels are at one place, each is within the page, and its name says which it is."""
    taken: dict[tuple[int, int], str] = {}
    titles = set()
    for panel in read(path)["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= COLUMNS
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, f"{panel['title']} over {taken[x, y]}"
                taken[x, y] = panel["title"]
        assert panel["title"] not in titles
        titles.add(panel["title"])


def test_names_are_different() -> None:
    """Grafana keeps one dashboard of a uid: a second would replace the first."""
    for key in ("uid", "title"):
        values = [read(path)[key] for path in BOARDS]
        assert len(set(values)) == len(values) == len(BOARDS) >= 6
