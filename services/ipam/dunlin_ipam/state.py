"""What ipam knows: its ledger, the evidence of Kubernetes and the nodes, and indexes over both."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from msgspec import structs

from dunlin import subjects
from dunlin.events.facts import (
    AddressFact,
    AttachmentFact,
    BlockFact,
    Fact,
    NodeFact,
    PodFact,
    ServiceCIDRFact,
    SwitchFact,
    SyncFact,
    kind_of,
)
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_ipam.core.blocks import network_order, offset_of

KINDS: dict[str, type[Fact]] = {
    kind_of(fact_type): fact_type
    for fact_type in (
        NodeFact,
        PodFact,
        AttachmentFact,
        SwitchFact,
        BlockFact,
        AddressFact,
        ServiceCIDRFact,
        SyncFact,
    )
}
"""The facts that ipam uses, by kind."""


@dataclass(frozen=True, slots=True)
class Rules:
    """
    Settings of the installation.

    `pools`: where blocks of nodes without spec.podCIDRs come from. `cooldown_ms`: how long a
    released address rests at least. `grace_ms`: how old an allocation must be before a missing Pod
    makes it an orphan; also how long a deleted Node keeps what it had. `reuse_window`: of a large
    block, so many addresses are used before released ones are used again.
    """

    pools: tuple[IPNetwork, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()
    block_prefix_v4: int = 24
    block_prefix_v6: int = 120
    cooldown_ms: int = 60_000
    grace_ms: int = 60_000
    reuse_window: int = 256

    def block_prefix(self, version: int) -> int:
        """Length of the prefix of carved blocks of a family."""
        return self.block_prefix_v4 if version == 4 else self.block_prefix_v6


class Name(NamedTuple):
    """A namespace ("" for none; for attachments the node) and a name."""

    namespace: str
    name: str


class Owner(NamedTuple):
    """Who holds addresses: `name` is `<container id>/<ifname>`, "" where only the Pod is known."""

    node: str
    name: str


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the ledger and its sequence."""

    fact: AddressFact
    seq: int

    @property
    def is_allocated(self) -> bool:
        """It has an owner now."""
        return self.fact.state == "allocated"

    @property
    def owner(self) -> Owner:
        """Who holds it, or held it last."""
        return Owner(self.fact.node, self.fact.owner)


@dataclass(slots=True)
class BlockUse:
    """A block and the offsets of its addresses that the ledger knows."""

    fact: BlockFact
    allocated: set[int] = field(default_factory=set)
    released: set[int] = field(default_factory=set)
    fresh: int = 0
    """Every offset below has a line."""

    def forget(self, offset: int) -> None:
        """The ledger has no line for it (any more)."""
        self.allocated.discard(offset)
        self.released.discard(offset)
        self.fresh = min(self.fresh, offset)

    def note(self, offset: int, *, allocated: bool) -> None:
        """The ledger has this line."""
        self.forget(offset)
        (self.allocated if allocated else self.released).add(offset)

    def is_known(self, offset: int) -> bool:
        """The ledger has a line for it."""
        return offset in self.allocated or offset in self.released


Index = dict[Any, set[Any]]


def _move(index: Index, old: Iterable[Any], new: Iterable[Any], value: Any) -> None:
    """Take `value` from the keys `old` and put it under the keys `new`."""
    for key in old:
        index[key].discard(value)
        if not index[key]:
            del index[key]
    for key in new:
        index.setdefault(key, set()).add(value)


def evidence_of(pod: PodFact | None) -> tuple[IPAddress, ...]:
    """The addresses that a Pod's status says it holds; none for hostNetwork and finished Pods."""
    if pod is None or pod.host_network or pod.finished or not pod.node:
        return ()
    return pod.ips


@dataclass
class State:
    """
    The newest fact of each object, with indexes; changed only by `put` and `drop`.

    Both return the nodes whose intents may change by that. `later`: nodes of which only the duties
    may change; for the caller to empty. `seqs`: the last sequence on each subject of the ledger,
    tombstones too: what compare-and-set has to expect.
    """

    rules: Rules = field(default_factory=Rules)
    facts: dict[str, dict[Name, Any]] = field(default_factory=lambda: {kind: {} for kind in KINDS})
    lines: dict[IPAddress, Line] = field(default_factory=dict)
    uses: dict[IPNetwork, BlockUse] = field(default_factory=dict)
    seqs: dict[str, int] = field(default_factory=dict)
    attachment_seqs: dict[Name, int] = field(default_factory=dict)
    gone_since: dict[str, int] = field(default_factory=dict)
    """Node -> when (Unix ms) it was found that the Kubernetes API does not have it."""
    later: set[str] = field(default_factory=set)
    lines_of_owner: Index = field(default_factory=dict)
    lines_of_node: Index = field(default_factory=dict)
    blocks_of_node: Index = field(default_factory=dict)
    attachments_of_node: Index = field(default_factory=dict)
    attachments_of_pod: Index = field(default_factory=dict)
    attachments_with: Index = field(default_factory=dict)
    pods_of_node: Index = field(default_factory=dict)
    pods_with: Index = field(default_factory=dict)
    lines_of_pod: Index = field(default_factory=dict)
    nodes_with_cidr: Index = field(default_factory=dict)
    buckets: Index = field(default_factory=dict)
    use_at: dict[tuple[int, int, int], BlockUse] = field(default_factory=dict)
    """By version, length of the prefix, and the prefix as a number."""
    prefixes: dict[int, tuple[int, ...]] = field(default_factory=dict)
    """By version, the lengths of all blocks' prefixes; long ones first."""

    # --- queries ---------------------------------------------------------------------------------

    def find(self, kind: str, namespace: str, name: str) -> Any:
        """The newest fact of an object, None if there is none."""
        return self.facts[kind].get(Name(namespace, name))

    @property
    def synced(self) -> bool:
        """The watcher has published all of the cluster."""
        return Name("", "watcher") in self.facts["sync"]

    def node(self, name: str) -> NodeFact | None:
        """A Kubernetes Node."""
        found: NodeFact | None = self.find("node", "", name)
        return found

    def blocks(self, node: str) -> list[IPNetwork]:
        """The node's blocks by the ledger: spec.podCIDRs in their order, then the carved ones."""
        fact = self.node(node)
        ranks = {cidr: rank for rank, cidr in enumerate(fact.pod_cidrs if fact else ())}
        found = self.blocks_of_node.get(node, set())
        return sorted(found, key=lambda cidr: (ranks.get(cidr, len(ranks)), network_order(cidr)))

    def block_with(self, ip: IPAddress) -> BlockUse | None:
        """The block that an address is in; the narrowest, should several overlap."""
        version, number, bits = ip.version, int(ip), ip.max_prefixlen
        for prefixlen in self.prefixes.get(version, ()):
            use = self.use_at.get((version, prefixlen, number >> (bits - prefixlen)))
            if use is not None:
                return use
        return None

    def overlaps_block(self, cidr: IPNetwork) -> bool:
        """A block of the ledger, another than this one, shares addresses with it."""
        number, bits = int(cidr.network_address), cidr.max_prefixlen
        for prefixlen in self.prefixes.get(cidr.version, ()):
            if prefixlen > cidr.prefixlen:
                # Blocks of one length are the rule: only where there are smaller ones, all of them.
                return any(known != cidr and known.overlaps(cidr) for known in self._like(cidr))
            wide = (cidr.version, prefixlen, number >> (bits - prefixlen))
            if prefixlen < cidr.prefixlen and wide in self.use_at:
                return True
        return False

    def _like(self, cidr: IPNetwork) -> Iterator[Any]:
        """The blocks of the same family."""
        return (known for known in self.uses if known.version == cidr.version)

    def owned(self, owner: Owner) -> list[Line]:
        """The lines that an owner holds now."""
        ips = self.lines_of_owner.get(owner, ())
        return [self.lines[ip] for ip in ips if self.lines[ip].is_allocated]

    def attachments(self, node: str) -> list[AttachmentFact]:
        """What stands on a node, by name."""
        names = sorted(self.attachments_of_node.get(node, ()))
        return [self.facts["attachment"][name] for name in names]

    def is_claimed(self, ip: IPAddress) -> bool:
        """An attachment or a Pod's status has it, whatever the ledger says."""
        return ip in self.attachments_with or ip in self.pods_with

    def known_nodes(self) -> set[str]:
        """Every node that Kubernetes, the ledger or an agent speaks of."""
        named = {name for kind in ("node", "switch") for _, name in self.facts[kind]}
        return (
            named
            | set(self.blocks_of_node)
            | set(self.lines_of_node)
            | set(self.attachments_of_node)
        )

    # --- changes ---------------------------------------------------------------------------------

    def put(self, fact: Fact, seq: int) -> set[str]:
        """Take in the newest state of an object; an older one than is known changes nothing."""
        kind = kind_of(type(fact))
        if kind not in self.facts or not self._is_news(kind, fact.namespace, fact.name, seq):
            return set()
        name = Name(fact.namespace, fact.name)
        old = self.facts[kind].get(name)
        self.facts[kind][name] = fact
        if kind == "attachment":
            self.attachment_seqs[name] = seq
        elif isinstance(fact, PodFact):
            # 150,000 Pods: only what ipam needs is kept.
            fact = structs.replace(fact, labels={}, annotations={}, ports=())
            self.facts[kind][name] = fact
        return self._index(kind, name, old, fact)

    def drop(self, kind: str, namespace: str, name: str, seq: int) -> set[str]:
        """Forget an object; `seq` of its tombstone, 0 where the subject itself is gone."""
        if kind not in self.facts or not self._is_news(kind, namespace, name, seq):
            return set()
        old = self.facts[kind].pop(Name(namespace, name), None)
        if kind == "attachment":
            self.attachment_seqs.pop(Name(namespace, name), None)
        return set() if old is None else self._index(kind, Name(namespace, name), old, None)

    def ledger_seq(self, fact: AddressFact | BlockFact) -> int:
        """What compare-and-set on this fact's subject has to expect."""
        return self.seqs.get(fact.subject, 0)

    def _is_news(self, kind: str, namespace: str, name: str, seq: int) -> bool:
        """Ledger lines come twice: from our own write, and again from the stream."""
        if kind not in ("address", "block"):
            return True
        subject = subjects.fact(kind, namespace, name)
        if seq and seq <= self.seqs.get(subject, 0):
            return False
        if seq:
            self.seqs[subject] = seq
        else:
            self.seqs.pop(subject, None)
        return True

    def _index(self, kind: str, name: Name, old: Any, new: Any) -> set[str]:
        """Bring the indexes from `old` to `new` (None: not there)."""
        match kind:
            case "sync":
                return self._index_sync(name, old, new)
            case "servicecidr":
                return self._index_servicecidr(name, old, new)
            case "switch":
                return self._index_switch(name, old, new)
            case "node":
                return self._index_node(name, old, new)
            case "block":
                return self._index_block(name, old, new)
            case "address":
                return self._index_address(name, old, new)
            case "pod":
                return self._index_pod(name, old, new)
            case "attachment":
                return self._index_attachment(name, old, new)
        raise ValueError(f"no index of {kind}")

    def _index_sync(self, _name: Name, _old: SyncFact | None, _new: SyncFact | None) -> set[str]:
        return self.known_nodes()

    def _index_servicecidr(
        self, _name: Name, _old: ServiceCIDRFact | None, _new: ServiceCIDRFact | None
    ) -> set[str]:
        return set()

    def _index_switch(
        self, name: Name, _old: SwitchFact | None, _new: SwitchFact | None
    ) -> set[str]:
        return {name.name}

    def _index_node(self, name: Name, old: NodeFact | None, new: NodeFact | None) -> set[str]:
        if new is not None:
            self.gone_since.pop(name.name, None)
        # A podCIDR may wait for the node that had it before.
        cidrs = {cidr for fact in (old, new) if fact for cidr in fact.pod_cidrs}
        owners = {self.uses[cidr].fact.node for cidr in cidrs if cidr in self.uses}
        _move(
            self.nodes_with_cidr,
            old.pod_cidrs if old else (),
            new.pod_cidrs if new else (),
            name.name,
        )
        rivals: set[str] = set().union(*(self.nodes_with_cidr.get(cidr, ()) for cidr in cidrs))
        return {name.name} | owners | rivals

    def _index_block(self, name: Name, old: BlockFact | None, new: BlockFact | None) -> set[str]:
        touched = {block.node for block in (old, new) if block}
        if old is not None:
            _move(self.blocks_of_node, (old.node,), (), old.cidr)
            self.uses.pop(old.cidr, None)
            self.use_at.pop(_prefix(old.cidr), None)
        if new is not None:
            _move(self.blocks_of_node, (), (new.node,), new.cidr)
            self.uses[new.cidr] = self.use_at[_prefix(new.cidr)] = BlockUse(new)
            known = self.prefixes.get(new.cidr.version, ())
            if new.cidr.prefixlen not in known:
                self.prefixes[new.cidr.version] = tuple(
                    sorted((*known, new.cidr.prefixlen), reverse=True)
                )
        cidr = ip_network(name.name)
        for ip in self._lines_in(cidr):
            touched.add(self.lines[ip].fact.node)
            self._note(ip)
        return touched | self.nodes_with_cidr.get(cidr, set())

    def _index_address(
        self, name: Name, old: AddressFact | None, new: AddressFact | None
    ) -> set[str]:
        ip = ip_address(name.name)
        for fact, before in ((old, True), (new, False)):
            if fact is not None:
                for index, key in (
                    (self.lines_of_node, fact.node),
                    (self.lines_of_owner, Owner(fact.node, fact.owner)),
                    (self.lines_of_pod, Name(fact.pod_namespace, fact.pod_name)),
                    (self.buckets, _bucket(fact.ip)),
                ):
                    _move(index, (key,) if before else (), () if before else (key,), fact.ip)
        if new is None:
            self.lines.pop(ip, None)
        else:
            self.lines[new.ip] = Line(new, self.seqs.get(new.subject, 0))
        self._note(ip)
        claimants = {other.namespace for other in self.attachments_with.get(ip, ())}
        claimants |= {self.facts["pod"][other].node for other in self.pods_with.get(ip, ())}
        self.later |= {fact.node for fact in (old, new) if fact}
        return claimants

    def _index_pod(self, name: Name, old: PodFact | None, new: PodFact | None) -> set[str]:
        name = Name(name.namespace, name.name)
        _move(self.pods_of_node, _bound(old), _bound(new), name)
        _move(self.pods_with, evidence_of(old), evidence_of(new), name)
        touched = {*_bound(old), *_bound(new)}
        touched |= {attachment.namespace for attachment in self.attachments_of_pod.get(name, ())}
        return touched | {self.lines[ip].fact.node for ip in self.lines_of_pod.get(name, ())}

    def _index_attachment(
        self, name: Name, old: AttachmentFact | None, new: AttachmentFact | None
    ) -> set[str]:
        name = Name(name.namespace, name.name)
        for fact, before in ((old, True), (new, False)):
            if fact is not None:
                pod = Name(fact.pod_namespace, fact.pod_name)
                for index, keys in (
                    (self.attachments_of_node, (fact.node,)),
                    (self.attachments_of_pod, (pod,)),
                    (self.attachments_with, fact.ips),
                ):
                    _move(index, keys if before else (), () if before else keys, name)
        return {name.namespace}

    def _note(self, ip: IPAddress) -> None:
        """Bring the block that an address is in up to date with its line."""
        use = self.block_with(ip)
        if use is None:
            return
        line = self.lines.get(ip)
        offset = offset_of(use.fact.cidr, ip)
        if line is None:
            use.forget(offset)
        else:
            use.note(offset, allocated=line.is_allocated)

    def _lines_in(self, block: IPNetwork) -> list[IPAddress]:
        first = int(block.network_address) >> BUCKET_BITS
        last = int(block.broadcast_address) >> BUCKET_BITS
        keys: Iterable[tuple[int, int]]
        if last - first < len(self.buckets):
            keys = ((block.version, number) for number in range(first, last + 1))
        else:
            keys = list(self.buckets)
        return [ip for key in keys for ip in self.buckets.get(key, ()) if ip in block]


BUCKET_BITS = 8


def _prefix(block: IPNetwork) -> tuple[int, int, int]:
    number = int(block.network_address) >> (block.max_prefixlen - block.prefixlen)
    return block.version, block.prefixlen, number


def _bucket(ip: IPAddress) -> tuple[int, int]:
    return ip.version, int(ip) >> BUCKET_BITS


def _bound(pod: PodFact | None) -> tuple[str, ...]:
    return (pod.node,) if pod is not None and pod.node else ()
