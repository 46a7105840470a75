"""Every setting of ipam."""

from dataclasses import dataclass
from ipaddress import ip_network

from dunlin.model.addresses import IPNetwork
from dunlin.service.settings import CommonSettings, setting
from dunlin_ipam.state import Rules


@dataclass(frozen=True, kw_only=True)
class IpamSettings(CommonSettings):
    """ipam gives each node its blocks and each Pod its addresses."""

    pod_cidrs: tuple[IPNetwork, ...] = setting(
        (ip_network("10.244.0.0/16"),), "Pools for nodes without spec.podCIDRs."
    )
    service_cidrs: tuple[IPNetwork, ...] = setting(
        (ip_network("10.96.0.0/12"),), "Where ClusterIPs come from, unless ServiceCIDRs exist."
    )
    block_prefix_v4: int = setting(
        24, "Size of carved IPv4 blocks.", unit="bits of prefix", low=8, high=30
    )
    block_prefix_v6: int = setting(
        120, "Size of carved IPv6 blocks.", unit="bits of prefix", low=8, high=126
    )
    cooldown_s: float = setting(
        60.0, "A released address is not given again before.", unit="seconds", low=0
    )
    orphan_grace_s: float = setting(
        60.0,
        "An address without interface and Pod, or of a deleted Node, is kept for so long.",
        unit="seconds",
        low=0,
    )
    lease_ttl_s: float = setting(
        3.0, "How long a shard of nodes stays ours without renewal.", unit="seconds", low=0.3
    )
    carve_grace_s: float = setting(
        5.0,
        "In a new stream, no block is carved before all agents have spoken, or this.",
        unit="seconds",
        low=0,
    )

    @property
    def rules(self) -> Rules:
        """What the core needs of it."""
        return Rules(
            pools=self.pod_cidrs,
            service_cidrs=self.service_cidrs,
            block_prefix_v4=self.block_prefix_v4,
            block_prefix_v6=self.block_prefix_v6,
            cooldown_ms=round(self.cooldown_s * 1000),
            grace_ms=round(self.orphan_grace_s * 1000),
        )
