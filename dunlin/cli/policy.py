"""`dunlin policy`: what policies do, and why."""

import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from dunlin.cli.api import installation
from dunlin.cli.output import Form, emit, table

app = typer.Typer(no_args_is_help=True, help="What policies allow and deny, and why.")

Item = dict[str, Any]
EXIT_CODES = {"ALLOWED": 0, "DENIED": 3, "MIXED": 3, "UNREACHABLE": 4}
COLOURS = {"ALLOWED": "green", "DENIED": "red", "MIXED": "yellow", "UNREACHABLE": "magenta"}
Url = Annotated[
    str, typer.Option("--url", envvar="DUNLIN_URL", help="An installation; else the lab's.")
]
Name = Annotated[str, typer.Option("--name", help="Which lab.")]
Output = Annotated[Form, typer.Option("-o", "--output", help="table, wide, json or yaml.")]


@app.command()
def explain(
    source: Annotated[str, typer.Argument(metavar="SRC", help="namespace/pod or an address.")],
    destination: Annotated[
        str, typer.Argument(metavar="DST", help="namespace/pod, svc/namespace/name or an address.")
    ],
    port: Annotated[
        str, typer.Argument(metavar="PORT[/PROTO]", help="80, 53/UDP, a Service's port name, icmp.")
    ],
    url: Url = "",
    name: Name = "dunlin",
    output: Output = Form.TABLE,
) -> None:
    """
    May SRC connect to DST, and which policy and rule says so, in each direction.

    Exit status: 0 ALLOWED; 3 DENIED (by one address or endpoint at least); 4 no policy denies it,
    but it does not arrive; 1 no answer, or SRC, DST or PORT is wrong; 2 wrong usage.
    """
    params = {"source": source, "destination": destination, "port": port}
    answer = installation(url, name).get("flowctl", "/v1/policy/explain", **params)
    emit(output, answer, explained(answer))
    sys.exit(EXIT_CODES[answer["verdict"]])


@app.command()
def stats(
    namespace: Annotated[str, typer.Argument(help="Only policies of this namespace.")] = "",
    url: Url = "",
    name: Name = "dunlin",
    output: Output = Form.TABLE,
) -> None:
    """What each rule allowed, and what was denied and by whom."""
    params = {"namespace": namespace} if namespace else {}
    found = installation(url, name).get("metrics", "/v1/policies", **params)
    emit(output, found, counted(found))


@app.command()
def denials(
    namespace: Annotated[str, typer.Argument(help="Only of this namespace.")] = "",
    limit: Annotated[int, typer.Option(help="How many of the latest.", min=1, max=1000)] = 50,
    url: Url = "",
    name: Name = "dunlin",
    output: Output = Form.TABLE,
) -> None:
    """The latest denied packets, where the annotation `dunlin.dev/log-denied` asks for them."""
    params = {"limit": str(limit), **({"namespace": namespace} if namespace else {})}
    found = installation(url, name).every("flowctl", "/v1/policy/denials", **params)
    newest = sorted((one for part in found for one in part), key=lambda one: -one["at_ms"])[:limit]
    emit(output, newest, denied(newest))


# --- what people see ------------------------------------------------------------------------------


def explained(answer: Item) -> Iterator[Text]:
    """A line for each path, and below it a line for each direction."""
    text = Text()
    text.append(answer["verdict"], style=f"bold {COLOURS[answer['verdict']]}")
    text.append(f"  {answer['source']} -> {answer['destination']} {answer['port']}")
    yield text
    for path in answer["paths"]:
        yield _path(path)
        for judgement in path["judgements"]:
            yield from _judgement(judgement)
        if not path["judgements"]:
            yield Text(f"      {path['reason']}", style="dim")
    if not answer["complete"]:
        yield Text("  … and more endpoints", style="yellow")


def _path(path: Item) -> Text:
    text = Text("\n  ")
    text.append(path["verdict"].lower(), style=COLOURS[path["verdict"]])
    port = f" port {path['port']}" if path["port"] else ""
    text.append(f"  {_end(path['source'])} -> {_end(path['destination'])}{port}")
    if not path["asked"].startswith(path["destination"]["ip"]):
        text.append(f"  (by {path['asked']})", style="dim")
    if path["verdict"] == "UNREACHABLE":
        text.append(f"\n      {path['reason']}", style="magenta")
    return text


def _end(end: Item) -> str:
    kind = "" if end["kind"] == "address" else f"{end['kind']} "
    return f"{kind}{end['name']} ({end['ip']})" if end["name"] else str(end["ip"])


WORDS = {
    "not selected": "no policy selects it, or has a rule about this",
    "not a Pod": "",
    "own node": "a Pod and its own node always reach each other",
    "fenced": "the Pod is fenced: its policies are not known yet",
}


def _judgement(judgement: Item) -> Iterator[Text]:
    """The decision, and what it rests on."""
    if judgement["why"] == "not a Pod":
        return
    colour = "green" if judgement["allowed"] else "red"
    text = Text("      ")
    text.append(f"{judgement['direction']:<8}", style="bold")
    text.append("allowed" if judgement["allowed"] else "denied", style=colour)
    match judgement["why"]:
        case "rule":
            first, *others = judgement["rules"]
            text.append(" by ").append(_rule(first), style="cyan")
            for rule in others:
                text.append("\n              and by ").append(_rule(rule), style="cyan")
        case "isolated":
            text.append(": isolated by ").append(_policies(judgement), style="cyan")
            text.append(", and no rule allows it")
        case other:
            text.append(f": {WORDS.get(other, other)}")
    yield text
    for rule in judgement["passed"]:
        yield Text(f"              left to the next tier by {_rule(rule)}", style="dim")
    if not judgement["in_force"]:
        yield Text(f"              not in force yet on {judgement['node']}", style="yellow")


def _policy(policy: Item) -> str:
    where = f"{policy['namespace']}/" if policy["namespace"] else ""
    return f"{policy['kind']} {where}{policy['name']}"


def _rule(rule: Item) -> str:
    name = f" ({rule['name']})" if rule["name"] else ""
    tier = "" if rule["tier"] == "default" else f", tier {rule['tier']}"
    revision = rule["policy"]["revision"]
    return (
        f"{_policy(rule['policy'])}{tier}, {rule['direction']} rule {rule['rule']}{name}"
        f" [revision {revision}]"
    )


def _policies(judgement: Item) -> str:
    return ", ".join(
        f"{_policy(policy)} [revision {policy['revision']}]" for policy in judgement["isolated_by"]
    )


def denied(found: list[Item]) -> Iterator[Text]:
    """A line an entry, the newest first: a table of nine columns fits no terminal."""
    if not found:
        yield Text("nothing was logged as denied", style="dim")
    for one in found:
        at = datetime.fromtimestamp(one["at_ms"] / 1000, UTC).strftime("%H:%M:%S.%f")[:-3]
        text = Text(f"{at}Z ", style="dim")
        text.append(f"{one['node']} {one['direction']} ", style="")
        text.append(f"{_ended(one, 'source')} -> {_ended(one, 'destination')}", style="cyan")
        asked = f" (by {one['asked']})" if one["asked"] else ""
        text.append(f"{asked} {one['protocol']} ", style="")
        names = ", ".join(one["policies"])
        text.append("denied", style="red")
        why = f"isolated by {names}" if one["rule"] < 0 else f"rule {one['rule']} of {names}"
        more = f" ({one['packets']} packets)" if one["packets"] > 1 else ""
        text.append(f": {why}{more}", style="")
        yield text


def _ended(one: Item, end: str) -> str:
    """`shop/web:40000`, or the address."""
    ip = one[f"{end}_ip"]
    host = one[end] or (f"[{ip}]" if ":" in ip else ip)
    port = one[f"{end}_port"]
    return f"{host}:{port}" if port else host


def counted(found: Item) -> Iterator[Any]:
    """Two tables: by rule, and what was denied."""
    rows = []
    for policy in found["items"]:
        where = f"{policy['namespace']}/" if policy["namespace"] else ""
        gone = "" if policy["exists"] else " (gone)"
        for rule in policy["rules"]:
            colour = {"Accept": "green", "Deny": "red"}.get(rule["action"], "yellow")
            text = f"{rule['rule']} {rule['name']}".strip()
            row = [escape(f"{where}{policy['name']}{gone}"), rule["direction"], escape(text)]
            row += [f"[{colour}]{rule['action']}[/]"]
            row += [str(rule[key]) for key in ("connections", "packets", "bytes")]
            rows.append(row)
    columns = ["policy", "direction", "rule", "verdict", "connections", "packets", "bytes"]
    yield table("Rules", columns, rows)
    denied = []
    for row in found["denied"]:
        why = "isolated, no rule allowed it" if row["rule"] is None else f"rule {row['rule']}"
        names = escape(", ".join(row["policies"]))
        denied.append([names, row["direction"], why, str(row["packets"]), str(row["bytes"])])
    yield table("Denied", ["policies", "direction", "why", "packets", "bytes"], denied)
