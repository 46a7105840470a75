"""`dunlin plan`: what a change would do, before it is applied."""

import sys
from collections.abc import Iterable, Iterator
from enum import IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.markup import escape
from rich.text import Text

from dunlin.cli.api import ApiError, installation
from dunlin.cli.output import Form, emit, table

Item = dict[str, Any]
SUFFIXES = frozenset({".yaml", ".yml", ".json"})
TIMEOUT_S = 180.0


class Exit(IntEnum):
    """Exit codes, for a gate; 2 is the command line's own for wrong usage."""

    NOTHING = 0
    ERROR = 1
    REACHABILITY = 3
    CUTS = 4


class By(StrEnum):
    """What a row of pairs stands for."""

    AUTO = "auto"
    WORKLOAD = "workload"
    NAMESPACE = "namespace"


VERDICTS = {
    "none": Exit.NOTHING,
    "reachability": Exit.REACHABILITY,
    "cuts": Exit.CUTS,
    "unknown": Exit.CUTS,
}


def plan(
    *,
    files: Annotated[
        list[str], typer.Option("-f", "--filename", help="File, directory, or - for stdin.")
    ],
    delete: Annotated[bool, typer.Option("--delete", help="As if they were deleted.")] = False,
    connections: Annotated[
        bool, typer.Option(help="Ask the nodes which live connections would be cut.")
    ] = True,
    by: Annotated[
        By, typer.Option(help="Pairs of workloads or of namespaces; auto: by how many there are.")
    ] = By.AUTO,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Rows of each list.")] = 200,
    url: Annotated[
        str, typer.Option("--url", envvar="DUNLIN_URL", help="An installation; else the lab's.")
    ] = "",
    name: Annotated[str, typer.Option("--name", help="Which lab.")] = "dunlin",
    output: Annotated[Form, typer.Option("-o", "--output", help="table, json or yaml.")] = (
        Form.TABLE
    ),
) -> None:
    """
    What applying (or deleting) manifests would change. Nothing is applied.

    Exit code 0: nobody's reachability changes. 3: it does. 4: live connections would be cut, or a
    node did not say whether. 1: an object cannot be planned, or no planner answers.
    """
    objects = list(manifests(files))
    if not objects:
        # A gate whose template came out empty must not be green.
        raise ApiError(f"{', '.join(files)}: no object in it")
    body = {
        "objects": objects,
        "delete": delete,
        "connections": connections,
        "by": by.value,
        "limit": limit,
    }
    place = installation(url, name)
    answer = place.post("planner", "/v1/plan", body, timeout_s=TIMEOUT_S)
    emit(output, answer, view(answer))
    raise typer.Exit(VERDICTS.get(answer["verdict"], Exit.ERROR))


def manifests(files: Iterable[str]) -> Iterator[Any]:
    """
    Every document of these files, and of the files in these directories, in order.

    Raises:
        ApiError: a file cannot be read, or is no YAML.
    """
    for name in files:
        for path in _paths(name):
            try:
                text = sys.stdin.read() if path is None else path.read_text()
                yield from (found for found in yaml.safe_load_all(text) if found is not None)
            except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
                raise ApiError(f"{path or 'stdin'}: {error}") from error


def _paths(name: str) -> list[Path | None]:
    if name == "-":
        return [None]
    path = Path(name)
    if not path.is_dir():
        return [path]
    found = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES and p.is_file())
    if not found:
        raise ApiError(f"{name}: no {', '.join(sorted(SUFFIXES))} file in this directory")
    return list(found)


# --- what people see ------------------------------------------------------------------------------

_MARKS = {"create": "[green]+[/]", "replace": "[yellow]~[/]", "delete": "[red]-[/]"}
_HEADLINES = {
    "none": ("bold green", "Nobody's reachability changes."),
    "reachability": ("bold yellow", "Reachability changes; no live connection is cut."),
    "cuts": ("bold red", "Live connections would be cut."),
    "unknown": ("bold red", "Live connections may be cut: not everything could be looked at."),
}


def view(answer: Item) -> Iterator[Any]:
    """The answer, the most important first."""
    style, words = _HEADLINES[answer["verdict"]]
    yield Text(words, style=style)
    for item in answer["objects"]:
        mark = _MARKS.get(item["action"], " ")
        yield Text.from_markup(f"  {mark} {escape(item['object'])} [dim]{item['action']}[/]")
    yield from _connections(answer["connections"])
    yield from _reachability(answer["reachability"])
    yield from _flows(answer["flows"])


def _reachability(found: Item) -> Iterator[Any]:
    if found["pairs"]:
        title = (
            f"Reachability: {_many(found['pairs'], 'pair')} of Pods, "
            f"[green]{found['opened']} gain[/], [red]{found['closed']} lose[/]"
        )
        rows = [
            (
                escape(item["source"]),
                "→",
                escape(item["destination"]) + (f" [dim]{item['family']}[/]" * bool(item["family"])),
                str(item["pairs"]),
                _ports(item),
            )
            for item in found["items"]
        ]
        yield table(title, ["from", "", "to", "pairs", "change"], rows)
    if found["more"]:
        yield Text(f"  … and {found['more']} more rows (--limit N shows more)", style="dim")
    if not found["complete"]:
        yield Text("  not all pairs were looked at: the change concerns too many", style="red")


def _ports(item: Item) -> str:
    closed = [f"[red]- {escape(port)}[/]" for port in _short(item["closed"])]
    opened = [f"[green]+ {escape(port)}[/]" for port in _short(item["opened"])]
    return "  ".join((*closed, *opened))


def _short(ports: list[str], most: int = 6) -> list[str]:
    return ports if len(ports) <= most else [*ports[:most], f"{len(ports) - most} more"]


def _connections(found: Item) -> Iterator[Any]:
    if found["cut"]:
        title = f"[bold red]{_many(found['cut'], 'live connection')} would be cut[/]"
        rows = [
            (
                escape(item["source"]),
                "→",
                escape(item["destination"]),
                item["port"],
                f"[red]{item['count']}[/]",
                f"[dim]{escape(item['such_as'])}[/]",
            )
            for item in found["items"]
        ]
        yield table(title, ["from", "", "to", "port", "live", "such as"], rows)
    for item in found["silent"]:
        yield Text(f"  {item['node']} did not say what lives there: {item['reason']}", style="red")
    for node in found["truncated"]:
        yield Text(f"  {node} knows of more connections than were looked at", style="red")


def _flows(found: Item) -> Iterator[Any]:
    switches = len(found["switches"]) + found["more"]
    if not switches:
        yield Text("Flows: none change.")
        return
    yield Text.from_markup(
        f"[bold]Flows[/] on {_many(switches, 'switch', 'es')}: [green]+{found['added']}[/]"
        f" [red]-{found['removed']}[/] [yellow]~{found['modified']}[/]"
        f"  [dim](on each: +{found['all']['added']} -{found['all']['removed']}"
        f" ~{found['all']['modified']}, and its own)[/]"
    )


def _many(count: int, word: str, plural: str = "s") -> str:
    return f"{count} {word}{'' if count == 1 else plural}"
