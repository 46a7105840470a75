"""Pods for tests: what `links` and `ovsdb` are told of the k-th Pod."""

from ipaddress import ip_address
from pathlib import Path

from dunlin.model.addresses import GATEWAY_MAC, derived_mac
from dunlin_agent.adapters.links import PodLink, host_ifname
from dunlin_agent.adapters.ovs_spec import BridgeSpec, PodPort, node_bridges
from tests.dataplane.agent.ovs_node import OvsNode


def pod_bridges() -> tuple[BridgeSpec, ...]:
    """The bridges of a node without uplink and controllers, for these Pods."""
    return node_bridges(
        "n",
        controllers=(),
        uplink=None,
        uplink_mac=None,
        gateway_mac=derived_mac("gateway"),
        pod_mtu=1450,
    )


def pod_link(netns: Path, k: int, *, offload: bool = False) -> PodLink:
    """The k-th Pod: 10.1.0.(k+1) and fd00::(k+1) in hexadecimal."""
    return PodLink(
        netns=netns,
        ifname="eth0",
        host_ifname=host_ifname(f"c{k}", "eth0"),
        mac=derived_mac(str(k)),
        ips=(ip_address("10.1.0.1") + k, ip_address("fd00::1") + k),
        gateways=(ip_address("10.1.0.1"), ip_address("fd00::1")),
        gateway_mac=GATEWAY_MAC,
        mtu_bytes=1450,
        checksum_offload=offload,
    )


def pod_port(link: PodLink, k: int) -> PodPort:
    """The port of that Pod."""
    return PodPort(
        port_name=link.host_ifname,
        pod_namespace="default",
        pod_name=f"web-{k}.x",
        pod_uid=f"uid-{k}",
        container_id=f"c{k}",
        netns=str(link.netns),
        ips=link.ips,
        gateways=link.gateways,
        mac=link.mac,
    )


def forward(node: OvsNode, link: PodLink, ofport: int) -> None:
    """Hand-written flows: what is sent to the Pod's addresses reaches it, as from its gateway."""
    for ip in link.ips:
        match = f"ip,nw_dst={ip}" if ip.version == 4 else f"ipv6,ipv6_dst={ip}"
        rewrite = f"set_field:{link.mac}->eth_dst,set_field:{GATEWAY_MAC}->eth_src"
        node.ofctl("add-flow", "br-int", f"{match},actions={rewrite},output:{ofport}")
