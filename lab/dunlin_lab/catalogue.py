"""
The processes of a lab: what each service is called, how it is started and where it answers.

A service has replicas `0`, `1`, …; agents, one on each node, are called by their node's name. A
process is `SERVICE@REPLICA` in procs.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

CONTROL_PLANE = ("watcher", "ipam", "planner", "flowctl", "metrics")
"""Services of Dunlin that scale by `--replicas SERVICE=N`."""

SERVICES = ("nats", "apiserver", *CONTROL_PLANE, "agent", "runner", "responder")
"""Every service of a lab, in the order of their start."""

CONTROLLER_MANAGER = "kube-controller-manager"
KUBERNETES = ("etcd", "apiserver", CONTROLLER_MANAGER)
"""Not Dunlin's, and without its readiness probe."""

OVS_PROCESSES = ("ovsdb-server", "ovs-vswitchd")
"""Can be killed and started like services; their replica is the node."""


@dataclass(frozen=True, slots=True)
class Spec:
    """One process: how to start it, and the URL of its REST API ("" where it has none)."""

    service: str
    replica: str
    argv: tuple[str, ...]
    env: dict[str, str] = field(default_factory=dict)
    url: str = ""
    netns: Path | None = None
    health: str = ""
    """URL of its readiness probe, where that is not `<url>/readyz`."""

    @property
    def process(self) -> str:
        """Its name in procs."""
        return process_name(self.service, self.replica)


class UnknownServiceError(ValueError):
    """No such service or replica in this lab; the message lists those there are."""


def process_name(service: str, replica: str) -> str:
    """`SERVICE@REPLICA`."""
    return f"{service}@{replica}"


def split_process(name: str) -> tuple[str, str]:
    """Inverse of `process_name`."""
    service, _, replica = name.partition("@")
    return service, replica


def select(names: list[str], target: str) -> list[str]:
    """
    The processes that `SERVICE[/REPLICA]` means, out of the recorded `names`.

    Raises:
        UnknownServiceError: none.
    """
    service, _, replica = target.partition("/")
    found = [
        name
        for name in names
        if split_process(name)[0] == service and replica in ("", split_process(name)[1])
    ]
    if not found:
        known = ", ".join("/".join(split_process(name)) for name in sorted(names))
        raise UnknownServiceError(f"no {target!r} in this lab; there are: {known}")
    return found


def python(module: str, *args: str) -> tuple[str, ...]:
    """Run a module of ours with this very interpreter."""
    return (sys.executable, "-m", module, *args)


def free_port(host: str) -> int:
    """A TCP port of `host` that nobody listens on now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port
