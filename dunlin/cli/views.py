"""Tables of the command line, made from what the REST APIs answer."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from dunlin.cli.output import table

Item = dict[str, Any]


def status(switches_: list[Item], intents_: list[Item]) -> Iterable[Any]:
    """The network at a glance."""
    kinds = Counter(item["kind"] for item in intents_)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())) or "none"
    behind = [item for item in switches_ if not item["connected"] or item.get("pending")]
    errors = sum(len(item.get("errors") or ()) for item in switches_)
    health = Text("every switch holds its intents", style="bold green")
    if behind or errors:
        words = f"{len(behind)} of {len(switches_)} switches behind, {errors} intents refused"
        health = Text(words, style="bold red")
    return (health, Text(f"intents: {counts}"), switches(switches_, wide=False))


def switches(found: list[Item], *, wide: bool) -> Table:
    """One line a switch."""
    columns = ["node", "dpid", "state", "revision", "flows", "groups", "pending", "errors"]
    rows = []
    for item in found:
        state = "[green]connected[/]" if item["connected"] else "[red]not connected[/]"
        row = [item["node"], item["dpid"], state]
        row += [str(item.get(key, 0)) for key in ("revision", "flows", "groups", "pending")]
        row.append(str(len(item.get("errors") or ())))
        if wide:
            row += [str(item.get("owner", "")), str(item.get("peer", ""))]
        rows.append(row)
    return table("Switches", columns + (["owner", "peer"] if wide else []), rows)


def intents(found: list[Item], *, wide: bool) -> Table:
    """One line an intent, with how many switches hold its newest revision."""
    columns = ["object", "kind", "scope", "key", "revision", "applied"]
    rows = []
    for item in found:
        applied = item.get("applied") or {}
        done = sum(held >= item["revision"] for held in applied.values())
        colour = "green" if done == len(applied) else "yellow"
        cells = [item.get("object", ""), item["kind"], item["scope"], item["key"]]
        row = [escape(cell) for cell in cells]
        row += [str(item["revision"]), f"[{colour}]{done}/{len(applied)}[/]"]
        if wide:
            row.append(escape(item["id"]))
        rows.append(row)
    return table("Intents", columns + (["id"] if wide else []), rows)


def flows(found: list[Item], *, wide: bool) -> Table:
    """One line a flow: the table's name, and the object that caused it."""
    columns = ["table", "prio", "match", "actions", "packets", "bytes", "object"]
    rows = []
    for item in found:
        cells = (item["table"], item["priority"], item["match"], item["actions"])
        row = [escape(str(cell)) for cell in cells]
        row += [str(item.get("packets", 0)), str(item.get("bytes", 0))]
        row.append(escape(str(item.get("object") or item.get("intent") or "")))
        if wide:
            row += [str(item.get("cookie", "")), escape(str(item.get("intent", "")))]
        rows.append(row)
    return table("Flows", columns + (["cookie", "intent"] if wide else []), rows)


def ipam(found: dict[str, list[Item]], *, wide: bool = False) -> Iterable[Table]:
    """Pools, blocks, addresses."""
    pools = [{**item, "free": _approximate(item.get("free"))} for item in found["pools"]]
    keys: tuple[str, ...] = ("cidr", "blocks", "allocated", "cooling", "free")
    yield generic("Pools", [_pick(item, keys) for item in pools])
    keys = ("cidr", "node", "gateway", "allocated", "cooling", "free")
    blocks = [{**item, "free": _approximate(item.get("free"))} for item in found["blocks"]]
    yield generic("Blocks", [_pick(item, keys) for item in blocks])
    yield generic("Addresses", [_address(item, wide=wide) for item in found["addresses"]])


def _address(item: Item, *, wide: bool) -> Item:
    pod = f"{item.get('pod_namespace', '')}/{item.get('pod_name', '')}"
    row = {**_pick(item, ("ip", "node", "state")), "pod": pod}
    return {**row, **_pick(item, ("owner", "pod_uid", "since_ms"))} if wide else row


def _pick(item: Item, keys: Iterable[str]) -> Item:
    return {key: item[key] for key in keys if key in item}


def _approximate(number: Any) -> str:
    """IPv6 pools have more free addresses than anybody wants to read."""
    small = 1_000_000
    return str(number) if not isinstance(number, int) or number < small else f"{number:.2e}"


def generic(title: str, found: list[Item]) -> Table:
    """A table with a column for each key of the items."""
    columns = list(dict.fromkeys(key for item in found for key in item))
    rows = [[escape(_cell(item.get(column))) for column in columns] for item in found]
    return table(title, columns or ["none"], rows)


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list):
        return " ".join(map(str, value))
    return str(value)


def event(item: Item) -> Text:
    """One line: time, what, which object; a tombstone in red."""
    text = Text(f"{item.get('time', '')} ", style="dim")
    text.append(f"{item.get('stream', ''):<6} ", style="magenta")
    text.append(f"{item.get('seq', ''):>7} ", style="dim")
    gone = item.get("deleted", False)
    text.append(
        f"{'-' if gone else '+'} {item.get('subject', '')}", style="red" if gone else "cyan"
    )
    summary = item.get("summary", "")
    if summary:
        text.append(f"  {summary}")
    return text


def waited(answer: Item) -> Text:
    """What `wait` reached."""
    switches_ = answer.get("switches") or ()
    text = Text("in force on every switch", style="bold green")
    text.append(f" ({len(switches_)} switches, revision {answer.get('revision', '?')})", style="")
    return text
