"""Nodes -> the SwitchIntent of each: what of its pipeline no Pod, Service or route owns."""

from dunlin.events.intents import SwitchIntent
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_planner.core.nodes import NodeView
from dunlin_planner.ovs_version import survives_null_nat, tracks_sctp
from dunlin_planner.state import State, network_order


def plan_switch(state: State, view: NodeView) -> SwitchIntent:
    """The pipeline of one node's integration bridge."""
    switch = view.switch
    return SwitchIntent(
        scope=switch.name,
        key="pipeline",
        object=f"node/{switch.name}",
        dpid=switch.dpid,
        router_mac=switch.router_mac,
        gateway_port=switch.gateway_port,
        uplink_port=switch.uplink_port,
        tunnel_port=switch.tunnel_port,
        gateway_ips=switch.gateway_ips,
        addresses=view.addresses,
        next_hops=switch.next_hops,
        pod_cidrs=state.cluster.pod_cidrs,
        service_cidrs=service_cidrs(state),
        local_cidrs=view.cidrs,
        zone=view.node.zone,
        node_port_ips=node_port_ips(state, view),
        sctp=tracks_sctp(switch.ovs_version),
        null_nat=survives_null_nat(switch.ovs_version),
    )


def node_port_ips(state: State, view: NodeView) -> tuple[IPAddress, ...]:
    """As kube-proxy's --nodeport-addresses: the node's own, or those in the CIDRs set for that."""
    cidrs = state.cluster.node_port_cidrs
    own = (address.ip for address in view.addresses)
    return tuple(ip for ip in own if not cidrs or any(ip in cidr for cidr in cidrs))


def service_cidrs(state: State) -> tuple[IPNetwork, ...]:
    """Where ClusterIPs come from: the ServiceCIDR objects, or the setting where there are none."""
    found: set[IPNetwork] = set()
    for fact in state.facts["servicecidr"].values():
        found.update(fact.cidrs)
    return tuple(sorted(found, key=network_order)) or state.cluster.service_cidrs
