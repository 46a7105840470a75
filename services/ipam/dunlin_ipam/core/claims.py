"""Blocks: whose they are, and which are carved anew."""

from collections.abc import Iterator

from dunlin.events.facts import BlockFact, NodeFact, SwitchFact
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_ipam.core.blocks import (
    block_around,
    carve,
    network_order,
    overlaps,
    usable_count,
)
from dunlin_ipam.core.events import Write
from dunlin_ipam.state import State, evidence_of


def block_write(state: State, cidr: IPNetwork, node: str, *, own: bool) -> Write:
    """Claim a block for a node."""
    fact = BlockFact(name=str(cidr), cidr=cidr, node=node, own=own)
    return Write(fact, state.ledger_seq(fact))


def pod_cidr_claims(state: State, node: NodeFact) -> list[Write]:
    """
    The node's spec.podCIDRs that are not in the ledger under its name.

    Kubernetes says whose a podCIDR is: one that a gone or changed Node had goes over to this one.
    """
    writes = []
    for cidr in node.pod_cidrs:
        use = state.uses.get(cidr)
        if use is not None and use.fact.node == node.name:
            continue
        if use is not None and not _has_lost(state, use.fact):
            continue
        if use is None and (usable_count(cidr) == 0 or state.overlaps_block(cidr)):
            continue
        writes.append(block_write(state, cidr, node.name, own=False))
    return writes


def _has_lost(state: State, block: BlockFact) -> bool:
    """Its node is gone, or has other podCIDRs now."""
    node = state.node(block.node)
    return node is None or block.cidr not in node.pod_cidrs


def reclaims(state: State, node: str) -> list[Write]:
    """
    Blocks that a node without podCIDRs must have had when the ledger was lost.

    Known from its gateway's addresses and from what its Pods hold.
    """
    fact = state.node(node)
    if fact is None or fact.pod_cidrs:
        return []
    found: dict[IPNetwork, Write] = {}
    for ip in _standing(state, node):
        pool = next((pool for pool in state.rules.pools if ip in pool), None)
        if pool is None or state.block_with(ip) is not None:
            continue
        prefixlen = max(state.rules.block_prefix(ip.version), pool.prefixlen)
        cidr = block_around(ip, prefixlen)
        if not state.overlaps_block(cidr) and not _is_pod_cidr(state, cidr):
            found[cidr] = block_write(state, cidr, node, own=True)
    return [found[cidr] for cidr in sorted(found, key=network_order)]


def _standing(state: State, node: str) -> Iterator[IPAddress]:
    switch: SwitchFact | None = state.find("switch", "", node)
    yield from switch.gateway_ips if switch else ()
    for attachment in state.attachments(node):
        yield from attachment.ips
    for name in sorted(state.pods_of_node.get(node, ())):
        yield from evidence_of(state.facts["pod"][name])


def _is_pod_cidr(state: State, cidr: IPNetwork) -> bool:
    return any(overlaps(cidr, known) for known in state.nodes_with_cidr)


def carve_write(state: State, node: str, version: int) -> Write | None:
    """
    The lowest free block of the pools of one family, for this node.

    None if there is none left.
    """
    taken = [*state.uses, *state.nodes_with_cidr]
    claimed = [ip for ip in (*state.attachments_with, *state.pods_with) if ip.version == version]
    prefixlen = state.rules.block_prefix(version)
    taken.extend({block_around(ip, prefixlen) for ip in claimed})
    for pool in state.rules.pools:
        if pool.version == version:
            for cidr in carve(pool, prefixlen, taken):
                return block_write(state, cidr, node, own=True)
    return None


def families(state: State, node: NodeFact) -> list[int]:
    """The IP versions that a node's Pods get: of its podCIDRs, else of the pools."""
    cidrs = node.pod_cidrs or state.rules.pools
    return sorted({cidr.version for cidr in cidrs})


def is_justified(state: State, block: BlockFact) -> bool:
    """The node still has it: a podCIDR of its Node, or carved for a Node without podCIDRs."""
    node = state.node(block.node)
    if node is None:
        return False
    return not node.pod_cidrs if block.own else block.cidr in node.pod_cidrs
