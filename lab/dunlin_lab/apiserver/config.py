"""Every option of the server, in one place."""

from __future__ import annotations

import argparse
import secrets
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dunlin_lab.apiserver.allocators import Network

CONTROLLERS = (
    "deployment", "endpoints", "endpointslice", "garbage", "namespace", "node", "replicaset",
    "scheduler",
)  # fmt: skip
SERVICE_CIDRS = "10.96.0.0/16,fd00:10:96::/112"


@dataclass(frozen=True, slots=True)
class Settings:
    """
    What the server does.

    Attributes:
        host: address to listen on.
        port: 0 lets the kernel choose; the kubeconfig says which.
        data_dir: where the state is kept; made if it is not there.
        kubeconfig_out: where to write a kubeconfig once the server listens; it holds the token.
        service_cidrs: one of IPv4, one of IPv6, or both; the first is the primary family.
        cluster_cidrs: pools of Pod CIDRs; empty leaves nodes without one.
        node_cidr_mask_v4: prefix length of an IPv4 Pod CIDR.
        node_cidr_mask_v6: prefix length of an IPv6 Pod CIDR.
        disabled: controllers switched off, of CONTROLLERS.
        validate: False stores objects that a real API server would refuse with 422.
        default_max_pods: Pods a node takes that does not say so in status.allocatable.
        history: changes kept of each kind for watches that resume; older are 410 Expired.
        fsync: make each write survive the loss of the machine, not only of the process.
        token: the bearer token; empty admits everybody.
        tls: False speaks plain HTTP, over which kubectl sends no token.
    """

    host: str
    port: int
    data_dir: Path
    kubeconfig_out: Path | None
    service_cidrs: tuple[Network, ...]
    cluster_cidrs: tuple[Network, ...]
    node_cidr_mask_v4: int
    node_cidr_mask_v6: int
    disabled: frozenset[str]
    validate: bool
    default_max_pods: int
    history: int
    fsync: bool
    token: str
    tls: bool


def _cidrs(text: str) -> tuple[Network, ...]:
    found = tuple(ip_network(part) for part in text.split(",") if part)
    if len({item.version for item in found}) != len(found):
        message = f"{text}: at most one CIDR of each IP version"
        raise argparse.ArgumentTypeError(message)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("dunlin_lab.apiserver", description=__doc__)
    add = parser.add_argument
    add("--host", default="127.0.0.1")
    add("--port", type=int, required=True, help="0 lets the kernel choose")
    add("--data-dir", type=Path, required=True)
    add("--kubeconfig-out", type=Path)
    add("--service-cidr", type=_cidrs, default=_cidrs(SERVICE_CIDRS), metavar="V4[,V6]")
    add("--cluster-cidr", type=_cidrs, default=(), metavar="V4[,V6]")
    add("--node-cidr-mask", default="24/64", metavar="V4/V6", help="prefix lengths of Pod CIDRs")
    add("--disable", action="append", choices=CONTROLLERS, default=[], metavar="CONTROLLER")
    add("--no-scheduler", dest="disable", action="append_const", const="scheduler")
    add("--no-validation", action="store_true", help="store objects a real one would refuse")
    add("--default-max-pods", type=int, default=110)
    add("--history", type=int, default=20_000, help="changes kept of each kind")
    add("--fsync", action="store_true")
    add("--plain-http", action="store_true", help="no TLS; kubectl then needs --token ''")
    add("--token", help="bearer token; default: kept in the data directory; empty: none needed")
    return parser


def settings_from_args(arguments: Sequence[str]) -> Settings:
    """Read the command line; exits with usage on a mistake."""
    parser = _parser()
    found = parser.parse_args(arguments)
    masks = found.node_cidr_mask.split("/")
    if len(masks) != 2 or not all(part.isdigit() for part in masks):
        parser.error("--node-cidr-mask: V4/V6, for example 24/64")
    if not found.service_cidr:
        parser.error("--service-cidr: at least one CIDR")
    found.data_dir.mkdir(parents=True, exist_ok=True)
    return Settings(
        host=found.host,
        port=found.port,
        data_dir=found.data_dir,
        kubeconfig_out=found.kubeconfig_out,
        service_cidrs=found.service_cidr,
        cluster_cidrs=found.cluster_cidr,
        node_cidr_mask_v4=int(masks[0]),
        node_cidr_mask_v6=int(masks[1]),
        disabled=frozenset(found.disable),
        validate=not found.no_validation,
        default_max_pods=found.default_max_pods,
        history=found.history,
        fsync=found.fsync,
        token=found.token if found.token is not None else _kept_token(found.data_dir),
        tls=not found.plain_http,
    )


def _kept_token(data_dir: Path) -> str:
    """Return the token of this data directory, so that a kubeconfig outlives a restart."""
    path = data_dir / "token"
    if not path.exists():
        path.touch(mode=0o600)
        path.write_text(secrets.token_urlsafe(24))
    return path.read_text().strip()
