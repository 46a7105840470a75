"""What switches and routes have in common: who a node is, and which Pod addresses are its own."""

from dataclasses import dataclass

from dunlin.events.facts import NodeAddress, NodeFact, SwitchFact
from dunlin.events.findings import Finding, Severity
from dunlin.model.addresses import IPNetwork
from dunlin_planner.ovs_version import survives_null_nat, tracks_fragments
from dunlin_planner.state import State, network_order


@dataclass(frozen=True, slots=True)
class NodeView:
    """
    A node that can be planned for: the Kubernetes Node, its switch, and its blocks.

    `cidrs`: of block facts; in a family without any, spec.podCIDRs. Sorted.
    """

    node: NodeFact
    switch: SwitchFact
    cidrs: tuple[IPNetwork, ...]

    @property
    def addresses(self) -> tuple[NodeAddress, ...]:
        """The node's addresses, its InternalIPs before the others: tunnels end at the first."""
        ranks = {ip: rank for rank, ip in enumerate(self.node.ips)}
        order = sorted(self.switch.addresses, key=lambda a: ranks.get(a.ip, len(ranks)))
        return tuple(order)


def view(state: State, name: str) -> tuple[NodeView | None, tuple[Finding, ...]]:
    """
    The node, or None while something about it is missing or another node has its identity.

    Findings name what is missing. A Node that is not ready and has no switch is nobody's fault.
    """
    node: NodeFact | None = state.find("node", "", name)
    switch: SwitchFact | None = state.find("switch", "", name)
    if node is None:
        return None, ()
    if switch is None:
        waiting = (
            _finding(name, "switch", "its agent has not described its switch yet", "waiting"),
        )
        return None, waiting if node.ready else ()
    holder = state.dpids.holder(switch.dpid)
    if holder != (name,):
        other = holder[0] if holder else "?"
        reason = (
            f"datapath id {switch.dpid:016x} is that of node {other}: this switch is left alone"
        )
        return None, (_finding(name, "switch.dpid", reason, "conflict"),)
    cidrs, findings = _cidrs(state, node)
    missing = [ip for ip in switch.gateway_ips if not any(ip in cidr for cidr in cidrs)]
    if missing:
        reason = f"no block holds its gateway {missing[0]} yet"
        return None, (*findings, _finding(name, "switch.gateway_ips", reason, "waiting"))
    return NodeView(node, switch, cidrs), (*findings, *_of_version(switch))


def _of_version(switch: SwitchFact) -> tuple[Finding, ...]:
    """What its Open vSwitch cannot do for anybody."""
    version = switch.ovs_version
    if not version:
        return ()
    found = []
    if not tracks_fragments(version):
        reason = (
            f"Open vSwitch {version} loses a datagram to a Service that is larger than the "
            "MTU and the first of its flow; fixed in 3.1.7, 3.2.5, 3.3.4, 3.4.2 and 3.5.0"
        )
        found.append(_finding(switch.name, "switch.ovs_version", reason, "unsupported"))
    if not survives_null_nat(version):
        reason = (
            f"Open vSwitch {version} mixes up two connections from one source port, one to a "
            "Service and one to its endpoint directly: the second hangs; fixed in 3.1.3, 3.2.3 "
            "and 3.3.0"
        )
        found.append(_finding(switch.name, "switch.null_nat", reason, "unsupported"))
    return tuple(found)


def is_waiting(state: State, name: str) -> bool:
    """A ready node that cannot be planned for yet, because a fact is missing that should come."""
    node: NodeFact | None = state.find("node", "", name)
    if node is None or not node.ready:
        return False
    _, findings = view(state, name)
    return any(finding.severity == "waiting" for finding in findings)


def _cidrs(state: State, node: NodeFact) -> tuple[tuple[IPNetwork, ...], tuple[Finding, ...]]:
    blocks = [block.cidr for block in state.blocks_of.get(node.name, {}).values()]
    found = set(blocks)
    findings: list[Finding] = []
    for cidr in node.pod_cidrs:
        other = _other_owner(state, node.name, cidr)
        if other:
            reason = f"{cidr} belongs to node {other}: left out here"
            findings.append(_finding(node.name, "spec.podCIDRs", reason, "conflict"))
        elif not any(block.version == cidr.version for block in blocks):
            found.add(cidr)
        if not _in_pools(state, cidr):
            reason = (
                f"{cidr} is outside DUNLIN_POD_CIDRS: other nodes may send it to the world outside"
            )
            findings.append(_finding(node.name, "spec.podCIDRs", reason, "invalid"))
    return tuple(sorted(found, key=network_order)), tuple(findings)


def _other_owner(state: State, name: str, cidr: IPNetwork) -> str:
    """Who else has this podCIDR: by the ledger, else by the order of names; "" for nobody."""
    block = state.find("block", "", str(cidr))
    owner: str = block.node if block else (state.pod_cidrs.holder(cidr) or (name,))[0]
    return "" if owner == name else owner


def _in_pools(state: State, cidr: IPNetwork) -> bool:
    pools = [pool for pool in state.cluster.pod_cidrs if pool.version == cidr.version]
    return not pools or any(
        cidr.network_address in pool and cidr.prefixlen >= pool.prefixlen for pool in pools
    )


def _finding(name: str, field: str, reason: str, severity: Severity) -> Finding:
    return Finding(kind="Node", name=name, field=field, severity=severity, reason=reason)
