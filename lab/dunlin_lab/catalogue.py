"""
The processes of a lab: what each service is called, how it is started and where it answers.

A service has replicas `0`, `1`, …; agents, one on each node, are called by their node's name. A
process is `SERVICE@REPLICA` in procs.
"""

from __future__ import annotations

import errno
import itertools
import random
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

_PORTS = range(10_240, 30_000)
"""Below the node ports (30000-32767) and Linux' ports of outgoing connections (32768-60999)."""

_turn = itertools.count(random.randrange(len(_PORTS)))  # noqa: S311 - not a secret
"""Which of them is next, from somewhere on: none is given twice before it is listened on."""


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
    """
    A TCP port of `host` that nobody listens on now, another one each time.

    Not one of those that the kernel gives to outgoing connections: of those, one that is free now
    may be some connection's own when the process that is to listen there has started. Nor one of
    Kubernetes' node ports.

    Raises:
        OSError: a hundred ports in a row are taken.
    """
    for _ in range(100):
        port = _PORTS[next(_turn) % len(_PORTS)]
        try:
            with socket.create_server((host, port)):
                return port
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    raise OSError(errno.EADDRINUSE, f"no free port of {host} in a hundred of {_PORTS}")
