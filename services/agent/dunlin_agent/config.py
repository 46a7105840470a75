"""Every option of the agent."""

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dunlin.model.addresses import IPNetwork
from dunlin.service.settings import CommonSettings, setting

Encapsulation = Literal["auto", "none", "geneve", "vxlan"]


@dataclass(frozen=True, kw_only=True)
class Settings(CommonSettings):
    """Dunlin agent: bridges, Pod interfaces and CNI of one node; root, in the node's namespace."""

    node: str = setting(socket.gethostname, "metadata.name of this Kubernetes Node.")
    agent_socket: Path = setting(
        lambda: Path("/run/dunlin/agent.sock"), "Where CNI calls are answered."
    )
    ovs_rundir: Path = setting(
        lambda: Path("/var/run/openvswitch"),
        "OVS_RUNDIR: db.sock, ovs-vswitchd.pid, control sockets.",
    )
    uplink: str = setting(
        "", "Device to the other nodes, moved into br-ext; empty: the node's network is left alone."
    )
    openflow_controllers: tuple[str, ...] = setting(
        ("tcp:127.0.0.1:6653",),
        "flowctl replicas that br-int connects to: tcp: or ssl:HOST:PORT; a name is all it names.",
    )
    openflow_cert: str = setting(
        "", "PEM file of the certificate that OVS shows to flowctl (ssl), as OVS sees it."
    )
    openflow_key: str = setting("", "PEM file of its private key.")
    openflow_ca: str = setting("", "PEM file of the authorities of flowctl's certificate.")
    pod_cidrs: tuple[IPNetwork, ...] = setting(
        (), "Pod pools of the cluster, where ipam is silent."
    )
    service_cidrs: tuple[IPNetwork, ...] = setting(
        (), "Service CIDRs of the cluster, where ipam is silent."
    )
    node_port_min: int = setting(
        30000, "First port of the API server's --service-node-port-range.", low=1, high=65535
    )
    node_port_max: int = setting(
        32767, "Last port of the API server's --service-node-port-range.", low=1, high=61439
    )
    encapsulation: Encapsulation = setting(
        "auto", "Between nodes; auto: geneve once some node is on another subnet."
    )
    healthz_port: int = setting(
        10256,
        "Where load balancers ask for the node's health, as of kube-proxy; 0: nowhere.",
        low=0,
        high=65535,
    )
    proxy_metrics_bind: str = setting(
        "127.0.0.1:10249",
        "HOST:PORT of kube-proxy's metrics of this node, as its metricsBindAddress; empty: none.",
    )
    state_dir: Path = setting(
        lambda: Path("/var/lib/dunlin"), "What must survive the agent's restart."
    )
    pod_mtu: int = setting(
        0,
        "MTU of Pods; 0: the uplink's, less the tunnel's headers.",
        unit="bytes",
        low=0,
        high=9216,
    )
    closed_connection_s: int = setting(
        75,
        "How long conntrack remembers a closed TCP connection; 0: as Open vSwitch does (30).",
        unit="seconds",
        low=0,
        high=3600,
    )
    add_timeout_s: float = setting(
        40.0, "How long CNI ADD waits for its flows.", unit="seconds", low=1, high=100
    )
