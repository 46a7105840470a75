"""Every setting of the planner."""

from dataclasses import dataclass
from ipaddress import ip_network
from typing import Literal

from dunlin.model.addresses import IPNetwork
from dunlin.service.settings import CommonSettings, setting
from dunlin_planner.state import Cluster


@dataclass(frozen=True, kw_only=True)
class PlannerSettings(CommonSettings):
    """The planner turns nodes, Services and EndpointSlices into intents for switches."""

    pod_cidrs: tuple[IPNetwork, ...] = setting(
        (ip_network("10.244.0.0/16"),), "The cluster's pools of Pod addresses."
    )
    service_cidrs: tuple[IPNetwork, ...] = setting(
        (ip_network("10.96.0.0/12"),), "Where ClusterIPs come from, unless ServiceCIDRs exist."
    )
    encapsulation: Literal["auto", "none", "geneve", "vxlan"] = setting(
        "auto", "Between nodes: auto tunnels only where nodes share no subnet."
    )
    node_port_cidrs: tuple[IPNetwork, ...] = setting(
        (), "NodePorts are served on the nodes' addresses in these; empty: on all of them."
    )
    service_traffic: bool = setting(
        True, "Switches count bytes and packets of each Service endpoint: a flow for each one."
    )
    lease_ttl_s: float = setting(
        3.0, "How long a shard stays ours without renewal.", unit="seconds", low=0.3
    )
    agents_grace_s: float = setting(
        30.0,
        "How long nothing is withdrawn while a ready node's agent is silent, in a new stream.",
        unit="seconds",
        low=0,
    )
    policy_wait_s: float = setting(
        30.0,
        "How long a change of policy in both directions stays half closed for a silent switch.",
        unit="seconds",
        low=0,
    )
    policy_settle_s: float = setting(
        0.1,
        "Between its halves: what was sent before the first has arrived, megaflows are renewed.",
        unit="seconds",
        low=0,
    )
    policy_fence_s: float = setting(
        3.0,
        "How long a new Pod that a rule denies by its labels waits for switches to know it.",
        unit="seconds",
        low=0,
    )

    @property
    def cluster(self) -> Cluster:
        """What the core needs of it."""
        return Cluster(
            self.pod_cidrs,
            self.service_cidrs,
            self.encapsulation,
            self.node_port_cidrs,
            self.service_traffic,
        )
