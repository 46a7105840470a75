"""What people see: tables, bars, and machine-readable forms of the same."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 220
"""Columns where the output is not a terminal: lines for grep, not folded cells."""

console = Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
error_console = Console(stderr=True)

BAR_WIDTH = 40


class Form(StrEnum):
    """`-o`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A light table; long cells fold rather than vanish."""
    made = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for number, column in enumerate(columns):
        made.add_column(column, style="cyan" if number == 0 else "", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def bars(title: str, counts: Mapping[str, int]) -> Text:
    """Counts as horizontal bars, largest first; the share beside each."""
    total = sum(counts.values()) or 1
    widest = max((len(name) for name in counts), default=0)
    top = max(counts.values(), default=1) or 1
    text = Text(f"{title}\n", style="bold")
    for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        text.append(f"  {name:<{widest}} ", style="cyan")
        text.append("█" * max(1, round(BAR_WIDTH * count / top)), style="green")
        text.append(f" {count} ({100 * count / total:.1f} %)\n", style="")
    return text


def emit(form: Form, value: Any, as_table: Iterable[Any]) -> None:
    """Print `value` as JSON or YAML, or else the renderables of `as_table`."""
    if form is Form.JSON:
        sys.stdout.write(json.dumps(value, indent=2) + "\n")
    elif form is Form.YAML:
        sys.stdout.write(yaml.safe_dump(value, sort_keys=False))
    else:
        for renderable in as_table:
            console.print(renderable)
