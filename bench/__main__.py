"""`python -m bench [NAME…] [--quick] [--json FILE]`; without a name: all of them."""

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import machine
from bench.measure import Options, Table, Unavailable, show

BENCHES = {
    "programming": "one switch with 10,000 Services of 10 endpoints, against ovs-ofctl",
    "endpoint_change": "EndpointSlice change -> acknowledged by 100 bridges, against a bare bundle",
    "sessions": "flowctl with thousands of connected switches, and without one of its replicas",
    "scale": "the cost of one change, and of 20 Pod changes a second, by size of the cluster",
    "cni_add": "CNI ADD and DEL, against the bridge plugin with host-local",
    "services": "through a Service, against the rules of kube-proxy (iptables, nftables)",
    "throughput": "TCP, request/response and UDP of Pods, against a Linux bridge and routed veth",
    "idle_pods": "two Pods beside idle ones: Open vSwitch as it comes, and with what we preload",
    "policy_counters": "established traffic counted by policy rule, against not counted",
    "policies": "a change of policy, packets and memory, with 1 to 1,000 policies of 50 peers",
    "own_processes": "connections of a node's own processes, with rules to Services and without",
    "watcher_list": "listing 150,000 Pods, against the models of the kubernetes package",
}
"""In this order; each is a module here with `run(options) -> list[Table]`."""


WIDTH = 120


def main() -> int:
    """Run, print, and write the JSON; 1 when a bench that was asked for by name cannot run."""
    names = "\n".join(f"  {name:16} {what}" for name, what in BENCHES.items())
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=f"{__doc__}\n\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, less work")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all figures of all rounds")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(BENCHES))
    if unknown:
        parser.error(f"no bench {', '.join(unknown)}; there are: {', '.join(BENCHES)}")
    console, progress = _console(), Console(stderr=True)
    about = machine.describe()
    console.print(machine.line(about), highlight=False)
    options = Options(
        quick=arguments.quick, progress=lambda text: progress.print(text, style="dim")
    )
    results: dict[str, Any] = {}
    missing = False
    for name in arguments.names or BENCHES:
        console.print(f"\n[bold]{name}[/]: {BENCHES[name]}", highlight=False)
        try:
            tables = run(name, options)
        except Unavailable as error:
            console.print(f"  skipped: {error}", style="yellow", highlight=False)
            results[name] = {"skipped": str(error)}
            missing |= name in arguments.names
            continue
        for table in tables:
            show(table, console)
        results[name] = {"tables": [table.as_json() for table in tables]}
    if arguments.json is not None:
        found = {"machine": about, "quick": arguments.quick, "benches": results}
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(missing)


def _console() -> Console:
    """Wide enough for the tables also in a log."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


def run(name: str, options: Options) -> list[Table]:
    """One bench. Raises Unavailable."""
    tables: list[Table] = importlib.import_module(f"bench.{name}").run(options)
    return tables


if __name__ == "__main__":
    sys.exit(main())
