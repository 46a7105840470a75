"""`dunlin lab …`: a cluster in a box."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from pyroute2.netlink.exceptions import NetlinkError
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from dunlin.cli.output import bars, console, error_console, table
from dunlin_lab import down as removal
from dunlin_lab import netns, plan, procs, sample
from dunlin_lab import status as state_of
from dunlin_lab import up as building
from dunlin_lab.api import KubeconfigError
from dunlin_lab.assets import AssetsError
from dunlin_lab.catalogue import UnknownServiceError, select
from dunlin_lab.hugepages import HugepageError
from dunlin_lab.ovs import OvsError
from dunlin_lab.paths import DEFAULT_NAME, LabNameError, LabPaths
from dunlin_lab.starting import UpError, check_alive, wait_answers
from dunlin_lab.state import LabBusyError, LabState, NoLabError, load_state
from dunlin_lab.underlay import UnderlayError

app = typer.Typer(no_args_is_help=True, help=__doc__)
Name = Annotated[str, typer.Option("--name", help="Which lab; several may exist side by side.")]
UP_STEPS = 7

EXPECTED = (
    UpError,
    plan.OptionError,
    AssetsError,
    KubeconfigError,
    OvsError,
    UnderlayError,
    HugepageError,
    LabNameError,
    LabBusyError,
    NoLabError,
    UnknownServiceError,
    removal.ForeignLabError,
    procs.ProcessError,
    netns.NetnsError,
    NetlinkError,
)


@contextmanager
def _errors() -> Iterator[None]:
    """Errors that a user can act on are one clear line, not a traceback."""
    try:
        yield
    except EXPECTED as error:
        error_console.print(f"[bold red]dunlin lab:[/] {error}", highlight=False)
        raise typer.Exit(1) from error
    except PermissionError as error:
        error_console.print(f"[bold red]dunlin lab:[/] {error}: a lab needs root")
        raise typer.Exit(1) from error


@app.command("up")
def up(
    nodes: Annotated[int, typer.Option(min=0, max=200, help="How many nodes.")] = 2,
    datapath: Annotated[
        Literal["auto", "dpdk", "netdev"],
        typer.Option(help="dpdk needs hugepages; auto takes it if it can be had."),
    ] = "auto",
    kube_assets: Annotated[
        Path | None,
        typer.Option(
            envvar="KUBEBUILDER_ASSETS",
            help="Folder with etcd, kube-apiserver, kube-controller-manager.",
        ),
    ] = None,
    kubeconfig: Annotated[Path | None, typer.Option(help="Use this cluster's API.")] = None,
    no_sample: Annotated[bool, typer.Option("--no-sample", help="Without the shop.")] = False,
    replicas: Annotated[list[str] | None, typer.Option(help="SERVICE=N, may be repeated.")] = None,
    encapsulation: Annotated[
        Literal["auto", "none", "geneve", "vxlan"], typer.Option(help="Between nodes.")
    ] = "auto",
    pod_cidrs: Annotated[
        str, typer.Option(help="Pods' addresses; with --kubeconfig, those of that cluster.")
    ] = plan.networks(plan.POD_CIDRS),
    without_kubelet: Annotated[
        list[str] | None,
        typer.Option(help="A node that you run a kubelet on, may be repeated (docs/install.md)."),
    ] = None,
    name: Name = DEFAULT_NAME,
) -> None:
    """Build a cluster on this machine and start everything."""
    with _errors():
        options = plan.Options(
            nodes=nodes,
            datapath=datapath,
            kube_assets=None if kubeconfig else kube_assets,
            kubeconfig=kubeconfig,
            sample=not no_sample and nodes > 0,
            replicas=plan.parse_replicas(replicas or []),
            encapsulation=encapsulation,
            pod_cidrs=plan.parse_cidrs("--pod-cidrs", pod_cidrs),
            without_kubelet=tuple(without_kubelet or ()),
        )
        paths = LabPaths.named(name)
        began = time.monotonic()
        state, shown = _up(paths, options)
        _summary(paths, state, time.monotonic() - began)
        if shown is not None:
            _show_sample(shown)
        _next_commands(state, with_sample=shown is not None)


Shown = tuple[list[dict[str, Any]], str, list[dict[str, str]]]


def _up(paths: LabPaths, options: plan.Options) -> tuple[LabState, Shown | None]:
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=error_console) as progress:
        done: list[TaskID] = []

        def report(what: str) -> None:
            for task in done:
                progress.update(task, total=1, completed=1)
            done[:] = [progress.add_task(what, total=None)]

        building.check(options)
        state = building.up(paths, options, report)
        shown = None
        if options.sample:
            report("the shop: six Pods by the CNI executable")
            sample.apply(state)
            pods = sample.wait_pods(paths, state)
            report("in force on every switch")
            _wait(state, 30.0)
            address = sample.service_ip(state, "backend")
            client = next(pod for pod in pods if pod["name"] == "client")
            report(f"{sample.CALLS} calls through the Service")
            shown = (pods, address, sample.call(str(client["netns"]), address))
        report("done")
        progress.update(done[0], total=1, completed=1)
    return state, shown


def _wait(state: LabState, timeout_s: float) -> None:
    from dunlin.cli.api import WaitFailedError, wait

    try:
        wait([state.extra["url:flowctl@0"]], timeout_s)
    except WaitFailedError as error:
        raise UpError(str(error)) from error


def _summary(paths: LabPaths, state: LabState, seconds: float) -> None:
    console.print(
        f"\n[bold green]Lab {state.name} is up[/] after {seconds:.0f} s: "
        f"{len(state.nodes)} nodes, datapath [bold]{state.datapath}[/] ({state.datapath_reason})",
        highlight=False,
    )
    rows = [
        (
            service["service"],
            service["replica"],
            "up" if service["up"] else "[red]down[/]",
            service["url"],
        )
        for service in state_of.services(paths, state)
    ]
    console.print(table("Services", ("service", "replica", "state", "url"), rows))


def _show_sample(shown: Shown) -> None:
    pods, address, answers = shown
    rows = [
        (f"{pod['namespace']}/{pod['name']}", pod["node"], " ".join(pod["ips"])) for pod in pods
    ]
    console.print(table("Pods", ("pod", "node", "addresses"), rows))
    first = json.dumps(answers[0])
    console.print(f"shop/client -> Service shop/backend {address}:80 answered\n  {first}\n")
    spread = sample.spread(answers)
    console.print(bars(f"{len(answers)} connections over the endpoints", spread))


def _next_commands(state: LabState, *, with_sample: bool) -> None:
    flag = "" if state.name == DEFAULT_NAME else f" --name {state.name}"
    node = state.nodes[0].name if state.nodes else "NODE"
    metrics = state.extra.get("url:metrics@0", "")
    flowctl = state.extra.get("url:flowctl@0", "")
    pod = "shop/client" if with_sample else "NAMESPACE/POD"
    scale = "  kubectl -n shop scale deployment backend --replicas 5\n" if with_sample else ""
    console.print(
        f"\n[bold]The network, drawn[/]   {metrics}/\n"
        f"[bold]Metrics[/]              {metrics}/metrics\n"
        f"[bold]REST docs[/]            {flowctl}/docs\n"
        "\n[bold]Try[/]\n"
        f"  export KUBECONFIG={state.kubeconfig}; kubectl get pods -A -o wide\n"
        f"  uv run dunlin status{flag}\n"
        f"  uv run dunlin flows {node}{flag}\n"
        f"  uv run dunlin intents{flag}\n"
        f"  uv run dunlin lab exec {pod}{flag} -- ping -c 3 {state.outside.ips[0]}\n"
        f"{scale}"
        f"  uv run dunlin lab kill flowctl{flag}; uv run dunlin lab start flowctl{flag}\n"
        f"  uv run dunlin lab down{flag}",
        highlight=False,
        soft_wrap=True,
    )


@app.command("down")
def down(name: Name = DEFAULT_NAME) -> None:
    """Remove the lab, whatever state it is in."""
    with _errors():
        removed = removal.down(LabPaths.named(name))
    if removed.left:
        error_console.print(f"[yellow]dunlin lab:[/] {removed.left}", highlight=False)
    if not any((removed.processes, removed.namespaces, removed.links, removed.files)):
        console.print(f"there is no lab {name}")
        return
    console.print(
        f"lab {name} removed: {removed.processes} processes, {removed.namespaces} namespaces, "
        f"{removed.links} links" + (", hugepages given back" if removed.hugepages else "")
    )


@app.command("status")
def status(
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
    name: Name = DEFAULT_NAME,
) -> None:
    """Nodes, Pods and services of the lab."""
    with _errors():
        found = state_of.status(LabPaths.named(name))
    if as_json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    nodes = [(n["name"], " ".join(n["ips"]), n["dpid"], n["netns"]) for n in found["nodes"]]
    console.print(table("Nodes", ("node", "addresses", "dpid", "netns"), nodes))
    pods = [
        (
            f"{p['namespace']}/{p['name']}",
            p["node"],
            " ".join(p["ips"]),
            "ready" if p["ready"] else "[yellow]not ready[/]",
        )
        for p in found["pods"]
    ]
    console.print(table("Pods", ("pod", "node", "addresses", "state"), pods))
    services = [
        (s["service"], s["replica"], str(s["pid"]), "up" if s["up"] else "[red]down[/]", s["url"])
        for s in found["services"]
    ]
    console.print(table("Services", ("service", "replica", "pid", "state", "url"), services))


@app.command("exec", context_settings={"ignore_unknown_options": True})
def exec_(
    arguments: Annotated[list[str], typer.Argument(metavar="[NAMESPACE/POD] -- CMD…")],
    node: Annotated[str, typer.Option(help="The node's own network namespace.")] = "",
    outside: Annotated[bool, typer.Option("--outside", help="The world outside.")] = False,
    name: Name = DEFAULT_NAME,
) -> None:
    """Run a command inside a Pod's, a node's or the outside's network namespace."""
    with _errors():
        place, command = _place(LabPaths.named(name), arguments, node, outside=outside)
        if not command:
            raise plan.OptionError("no command: dunlin lab exec NAMESPACE/POD -- CMD")
        code = netns.exec_in(place, command)
    raise typer.Exit(code)


def _place(
    paths: LabPaths, arguments: list[str], node: str, *, outside: bool
) -> tuple[str, list[str]]:
    """(namespace path, command)."""
    state = load_state(paths)
    if outside:
        return state.outside.netns, arguments
    if node:
        for candidate in state.nodes:
            if candidate.name == node:
                return candidate.netns, arguments
        names = ", ".join(n.name for n in state.nodes)
        raise UnknownServiceError(f"no node {node!r}; there are: {names}")
    target, *command = arguments
    for pod in state_of.pods(paths, state):
        if f"{pod['namespace']}/{pod['name']}" == target:
            return str(pod["netns"]), command
    raise UnknownServiceError(f"no Pod {target!r} in this lab (dunlin lab status lists them)")


@app.command("kill")
def kill(target: str, name: Name = DEFAULT_NAME) -> None:
    """SIGKILL SERVICE, or one SERVICE/REPLICA; it stays down until `lab start`."""
    with _errors():
        registry = _registry(name)
        for process in select([record.name for record in registry.all()], target):
            was_alive = registry.kill(process)
            console.print(f"{process}: {'killed' if was_alive else 'was not running'}")


@app.command("start")
def start(target: str, name: Name = DEFAULT_NAME) -> None:
    """Start SERVICE, or one SERVICE/REPLICA, again after `lab kill`."""
    with _errors():
        paths = LabPaths.named(name)
        state, registry = load_state(paths), _registry(name)
        records = {record.name: record for record in registry.all()}
        for process in select(list(records), target):
            if procs.is_alive(records[process]):
                console.print(f"{process}: is running")
                continue
            registry.restart(process)
            url = state.extra.get(f"url:{process}", "")
            reason = wait_answers(url, partial(check_alive, paths, process))
            console.print(f"{process}: started" + (f", but {reason}" if reason else ""))


def _registry(name: str) -> procs.Processes:
    paths = LabPaths.named(name)
    load_state(paths)
    return procs.Processes(paths)
