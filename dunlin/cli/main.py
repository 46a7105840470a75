"""`dunlin`: see and ask the network."""

import sys
from importlib.metadata import entry_points
from typing import Annotated, Any

import typer

from dunlin.cli import policy, views
from dunlin.cli.api import ApiError, Installation, installation, wait
from dunlin.cli.output import Form, console, emit, error_console
from dunlin.cli.plan import plan

app = typer.Typer(no_args_is_help=True, help=__doc__, pretty_exceptions_enable=False)

app.add_typer(policy.app, name="policy")

Url = Annotated[
    str, typer.Option("--url", envvar="DUNLIN_URL", help="An installation; else the lab's.")
]
Name = Annotated[str, typer.Option("--name", help="Which lab.")]
Output = Annotated[Form, typer.Option("-o", "--output", help="table, wide, json or yaml.")]


@app.command()
def status(url: Url = "", name: Name = "dunlin", output: Output = Form.TABLE) -> None:
    """Switches, what they hold, and what is not in force."""
    place = installation(url, name)
    switches = items(place, "flowctl", "/v1/switches")
    intents = items(place, "flowctl", "/v1/intents")
    value = {"switches": switches, "intents": len(intents)}
    emit(output, value, views.status(switches, intents))


@app.command()
def switches(url: Url = "", name: Name = "dunlin", output: Output = Form.TABLE) -> None:
    """Every switch: connection, revision, flows, groups, errors."""
    found = items(installation(url, name), "flowctl", "/v1/switches")
    emit(output, found, [views.switches(found, wide=output is Form.WIDE)])


@app.command()
def intents(
    object_: Annotated[str, typer.Argument(metavar="[OBJECT]")] = "",
    url: Url = "",
    name: Name = "dunlin",
    output: Output = Form.TABLE,
) -> None:
    """What switches must do, and which have done it; OBJECT like service/default/web."""
    params = {"object": canonical_object(object_)} if object_ else {}
    found = items(installation(url, name), "flowctl", "/v1/intents", **params)
    emit(output, found, [views.intents(found, wide=output is Form.WIDE)])


@app.command()
def flows(
    node: str,
    intent: Annotated[str, typer.Option(help="Only flows of this intent id.")] = "",
    url: Url = "",
    name: Name = "dunlin",
    output: Output = Form.TABLE,
) -> None:
    """The flows of a node's switch: tables by name, objects instead of cookies."""
    params = {"intent": intent} if intent else {}
    found = items(installation(url, name), "flowctl", f"/v1/switches/{node}/flows", **params)
    emit(output, found, [views.flows(found, wide=output is Form.WIDE)])


@app.command()
def ipam(url: Url = "", name: Name = "dunlin", output: Output = Form.TABLE) -> None:
    """Address pools, the blocks of each node, and who has which address."""
    place = installation(url, name)
    found = {
        kind: items(place, "ipam", f"/v1/ipam/{kind}") for kind in ("pools", "blocks", "addresses")
    }
    emit(output, found, views.ipam(found, wide=output is Form.WIDE))


@app.command()
def events(
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on for ever.")] = False,
    limit: Annotated[int, typer.Option(help="How many of the latest to show first.")] = 50,
    url: Url = "",
    name: Name = "dunlin",
    output: Output = Form.TABLE,
) -> None:
    """Facts and intents as they were published."""
    place = installation(url, name)
    for event in place.lines("metrics", "/v1/events", follow=follow, limit=limit):
        if output in (Form.JSON, Form.YAML):
            emit(output, event, ())
        else:
            console.print(views.event(event), soft_wrap=True)


app.command("plan")(plan)


@app.command("wait")
def wait_(
    timeout: Annotated[float, typer.Option(help="Seconds.", min=0.1, max=3600)] = 60.0,
    url: Url = "",
    name: Name = "dunlin",
) -> None:
    """Until every switch has applied all that the Kubernetes API holds now; else exit 1."""
    place = installation(url, name)
    console.print(views.waited(wait(place.candidates("flowctl"), timeout, token=place.token)))


KINDS = {
    "po": "pod",
    "pods": "pod",
    "svc": "service",
    "services": "service",
    "no": "node",
    "nodes": "node",
    "netpol": "networkpolicy",
    "networkpolicies": "networkpolicy",
}
"""kubectl's short and plural names of the kinds that cause intents."""


def canonical_object(word: str) -> str:
    """`svc/default/web`, `svc/web` (namespace default) and `default/web` as REST has them."""
    kind, *rest = word.split("/")
    name = KINDS.get(kind, kind)
    if name not in KINDS.values():
        return word
    if len(rest) == 1 and name != "node":
        rest = ["default", *rest]
    return "/".join([name, *rest])


def items(place: Installation, service: str, path: str, **params: str) -> list[dict[str, Any]]:
    """The `items` of a list."""
    answer: list[dict[str, Any]] = place.get(service, path, **params)["items"]
    return answer


def add_plugins() -> None:
    """Commands of other packages, such as `lab`."""
    for entry in entry_points(group="dunlin.commands"):
        app.add_typer(entry.load(), name=entry.name)


def run() -> None:
    """Entry point of the executable."""
    # Only `lab` needs the lab's imports; everything else starts faster without.
    if len(sys.argv) < 2 or sys.argv[1] in ("lab", "--help"):
        add_plugins()
    try:
        app()
    except ApiError as error:
        error_console.print(f"[bold red]dunlin:[/] {error}", highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    run()
