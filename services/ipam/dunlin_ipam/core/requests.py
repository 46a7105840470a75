"""What a request of an agent leads to: an answer, or what must be written to the ledger first."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from dunlin.events.facts import AddressFact, AttachmentFact, BlockFact, NodeFact
from dunlin.events.rpc import (
    Allocated,
    AllocateRequest,
    Blocks,
    BlocksRequest,
    Failure,
    Released,
    ReleaseRequest,
)
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_ipam.core.blocks import can_be_given, gateway_of, network_order
from dunlin_ipam.core.choose import block_of, free_address, rank_own
from dunlin_ipam.core.claims import carve_write, families, pod_cidr_claims, reclaims
from dunlin_ipam.core.events import Write
from dunlin_ipam.state import Line, Owner, State


@dataclass(frozen=True, slots=True)
class Need:
    """Write these and ask again; one that is refused has been overtaken, so ask again too."""

    writes: tuple[Write, ...]

    @property
    def claims_blocks(self) -> bool:
        """Compare-and-set does not see that two different blocks overlap, or that one is enough."""
        return any(isinstance(write.fact, BlockFact) for write in self.writes)


@dataclass(frozen=True, slots=True)
class Refused:
    """No; `undo` is to be written for the sake of what was written for this request before."""

    failure: Failure
    undo: tuple[Write, ...] = ()


Decision: TypeAlias = Allocated | Need | Refused


@dataclass(frozen=True, slots=True)
class Context:
    """
    What a decision knows beside the state. `now_ms`: Unix time.

    `may_carve`: whatever nodes had when the ledger was lost is known, so a free block is free.
    """

    now_ms: int
    may_carve: bool = True


def owner_of(request: AllocateRequest | ReleaseRequest) -> Owner:
    """The owner that an agent's request speaks of."""
    return Owner(request.node, f"{request.container_id}/{request.ifname}")


def refuse(reason: str, *, retry: bool, undo: tuple[Write, ...] = ()) -> Refused:
    """A failure for people."""
    return Refused(Failure(reason=reason, retry=retry), undo)


def allocate(state: State, request: AllocateRequest, context: Context) -> Decision:
    """
    One address of each family of the node's blocks, the same for the same request.

    Everything that must be written comes as `Need`; when nothing must, the answer is `Allocated`.
    """
    node = state.node(request.node)
    if node is None:
        return refuse(f"node {request.node}: not known yet", retry=True)
    blocks = _missing_blocks(state, node, context)
    if blocks is not None:
        return blocks
    in_use = tuple(_adopt_in_use(state, request, context.now_ms))
    if in_use:
        return Need(in_use)
    owner = owner_of(request)
    writes: list[Write] = []
    ips: list[IPAddress] = []
    for version in families(state, node):
        rank = [ln for ln in rank_own(state, owner, version) if block_of(state, *_place(ln))]
        writes.extend(release_write(state, line, context.now_ms) for line in rank[1:])
        ip = rank[0].fact.ip if rank else _choose(state, request, version, context.now_ms)
        if ip is None:
            return _exhausted(state, request, version, context)
        ips.append(ip)
        if not rank:
            writes.append(_give(state, request, ip, context.now_ms))
    if writes:
        return Need(tuple(writes))
    gateways = [_gateway(state, request.node, ip.version) for ip in ips]
    return Allocated(ips=tuple(ips), gateways=tuple(gateways))


def _place(line: Line) -> tuple[str, IPAddress]:
    return line.fact.node, line.fact.ip


def _missing_blocks(state: State, node: NodeFact, context: Context) -> Need | Refused | None:
    """What the node must be given before anything of its blocks can; None if it has them."""
    claims = (*pod_cidr_claims(state, node), *reclaims(state, node.name))
    if claims:
        return Need(claims)
    have = {cidr.version for cidr in state.blocks(node.name)}
    for version in families(state, node):
        if version not in have:
            return _carve(state, node, version, context)
    if not have:
        return refuse(
            f"node {node.name}: no spec.podCIDRs, and DUNLIN_POD_CIDRS is empty", retry=True
        )
    return None


def _carve(state: State, node: NodeFact, version: int, context: Context) -> Need | Refused:
    if node.pod_cidrs:
        unusable = ", ".join(str(c) for c in node.pod_cidrs if c.version == version)
        reason = (
            f"node {node.name}: spec.podCIDRs {unusable} overlaps another node's, or is too small"
        )
        return refuse(reason, retry=True)
    if not context.may_carve:
        return refuse(f"node {node.name}: other nodes have not said what they have", retry=True)
    write = carve_write(state, node.name, version)
    if write is None:
        return refuse(f"node {node.name}: no IPv{version} block is left in the pools", retry=True)
    return Need((write,))


def _adopt_in_use(state: State, request: AllocateRequest, now_ms: int) -> Iterator[Write]:
    """Addresses that stand on the node and that the ledger does not know as given."""
    for ip in request.in_use:
        line = state.lines.get(ip)
        known = line is not None and line.is_allocated
        if known or block_of(state, request.node, ip) is None:
            continue
        fact = AddressFact(name=str(ip), ip=ip, node=request.node, since_ms=now_ms)
        yield Write(fact, state.ledger_seq(fact))


def _choose(state: State, request: AllocateRequest, version: int, now_ms: int) -> IPAddress | None:
    """What already stands for this very interface, else a free address."""
    attachment: AttachmentFact | None = state.find("attachment", *owner_of(request))
    for ip in attachment.ips if attachment else ():
        line = state.lines.get(ip)
        unowned = line is None or not line.is_allocated or not line.fact.owner
        cidr = block_of(state, request.node, ip)
        if ip.version == version and unowned and cidr is not None and can_be_given(cidr, ip):
            return ip
    return free_address(state, request.node, version, now_ms, request.in_use)


def _give(state: State, request: AllocateRequest, ip: IPAddress, now_ms: int) -> Write:
    fact = AddressFact(
        name=str(ip),
        ip=ip,
        node=request.node,
        owner=owner_of(request).name,
        pod_namespace=request.pod_namespace,
        pod_name=request.pod_name,
        pod_uid=request.pod_uid,
        since_ms=now_ms,
    )
    return Write(fact, state.ledger_seq(fact))


def _exhausted(
    state: State, request: AllocateRequest, version: int, context: Context
) -> Need | Refused:
    """Carve one more block if the node's are carved; else give back what this request got."""
    node = state.node(request.node)
    assert node is not None
    if not node.pod_cidrs:
        write = carve_write(state, node.name, version) if context.may_carve else None
        if write is not None:
            return Need((write,))
    blocks = [str(cidr) for cidr in state.blocks(node.name) if cidr.version == version]
    reason = f"node {node.name}: no free address in {', '.join(blocks)}"
    lines = state.owned(owner_of(request))
    attachment = state.find("attachment", *owner_of(request))
    undo = () if attachment else tuple(release_write(state, ln, context.now_ms) for ln in lines)
    return refuse(reason, retry=True, undo=undo)


def release_write(state: State, line: Line, now_ms: int) -> Write:
    """The line, released now."""
    fact = AddressFact(
        name=line.fact.name,
        ip=line.fact.ip,
        node=line.fact.node,
        state="released",
        owner=line.fact.owner,
        pod_namespace=line.fact.pod_namespace,
        pod_name=line.fact.pod_name,
        pod_uid=line.fact.pod_uid,
        since_ms=now_ms,
    )
    return Write(fact, state.ledger_seq(fact))


def release(state: State, request: ReleaseRequest, now_ms: int) -> Released | Need:
    """Take back everything that the owner holds; `ips` of the answer is for the caller to fill."""
    lines = state.owned(owner_of(request))
    if lines:
        return Need(tuple(release_write(state, line, now_ms) for line in lines))
    return Released()


def blocks(state: State, request: BlocksRequest, context: Context) -> Blocks | Need | Refused:
    """The node's blocks; gives it some if it has none."""
    node = state.node(request.node)
    if node is None:
        return refuse(f"node {request.node}: not known yet", retry=True)
    missing = _missing_blocks(state, node, context)
    if missing is not None:
        return missing
    cidrs = tuple(state.blocks(node.name))
    return Blocks(
        cidrs=cidrs,
        gateways=tuple(gateway_of(cidr) for cidr in cidrs),
        pod_cidrs=state.rules.pools,
        service_cidrs=service_cidrs(state),
    )


def service_cidrs(state: State) -> tuple[IPNetwork, ...]:
    """Where ClusterIPs come from: the ServiceCIDR objects, or the setting where there are none."""
    found: set[IPNetwork] = set()
    for fact in state.facts["servicecidr"].values():
        found.update(fact.cidrs)
    return tuple(sorted(found, key=network_order)) or state.rules.service_cidrs


def _gateway(state: State, node: str, version: int) -> IPAddress:
    """The node's gateway of one family: that of its first block."""
    return next(gateway_of(cidr) for cidr in state.blocks(node) if cidr.version == version)
