"""How policies see a Pod, or addresses outside, at one moment."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_network
from typing import NamedTuple

from dunlin.events.intents import PolicyDirection
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_planner.core.policy.groups import PodName
from dunlin_planner.core.policy.index import PolicyIndex
from dunlin_planner.core.policy.model import Group, Policy, PolicyName
from dunlin_planner.core.policy.variants import Binding, Element

Names = tuple[PolicyName, ...]
Elements = frozenset[Element]
VERSIONS = (4, 6)


class Side(NamedTuple):
    """
    One end of a connection.

    `egress`, `ingress`: the policies that select it. `elements`: by IP version, the groups and
    ipBlocks that hold it; None: it has no address of that version. `names`: its named ports.
    """

    egress: Names
    ingress: Names
    elements: tuple[Elements | None, Elements | None]
    names: frozenset[Binding] = frozenset()


@dataclass(frozen=True)
class Moment:
    """Every policy and every Pod that has an address; a copy: the index may change."""

    policies: Mapping[PolicyName, Policy]
    pods: Mapping[PodName, Side]
    blocks: Mapping[IPNetwork, Elements]

    def outside(self, network: IPNetwork) -> Side:
        """Addresses of a network that no longer prefix divides, as a peer."""
        found = _longest(self.blocks, network)
        return Side((), (), (found, None) if network.version == 4 else (None, found))

    def outside_address(self, ip: IPAddress) -> Side:
        """One address that is no Pod's."""
        return self.outside(ip_network((ip, ip.max_prefixlen)))


def moment(index: PolicyIndex) -> Moment:
    """As the index is now."""
    blocks = {
        prefix: frozenset[Element](index.networks.blocks(prefix) or ())
        for prefix in index.networks.prefixes
    }
    reader = _Reader(index, blocks)
    pods = {pod: side for pod in index.pods if (side := reader.side(pod)) is not None}
    policies = {name: known.policy for name, known in index.policies.items()}
    return Moment(policies, pods, blocks)


class _Reader:
    """Reads sides; what Pods share is read once."""

    def __init__(self, index: PolicyIndex, blocks: Mapping[IPNetwork, Elements]) -> None:
        self._index = index
        self._blocks = blocks
        self._names: dict[int, Names] = {}
        self._lengths = {
            version: sorted({p.prefixlen for p in blocks if p.version == version}, reverse=True)
            for version in VERSIONS
        }

    def side(self, pod: PodName) -> Side | None:
        """None: no address, so no policy of ours concerns it."""
        index = self._index
        ips = index.addresses(pod)
        if not ips:
            return None
        peer = index.classes.known.get(index.classes.of("peer", pod))
        groups = peer.elements if peer is not None else frozenset()
        return Side(
            self._selecting(pod, "egress"),
            self._selecting(pod, "ingress"),
            (self._elements(groups, ips, 4), self._elements(groups, ips, 6)),
            index.bound(pod),
        )

    def _selecting(self, pod: PodName, direction: PolicyDirection) -> Names:
        class_id = self._index.classes.of(direction, pod)
        if class_id not in self._names:
            self._names[class_id] = tuple(sorted(set(self._policies(class_id, direction))))
        return self._names[class_id]

    def _policies(self, class_id: int, role: PolicyDirection) -> Iterator[PolicyName]:
        known = self._index.classes.known.get(class_id)
        for element in known.elements if known is not None else ():
            if isinstance(element, Group):
                yield from self._index.subjects.get((role, element), ())

    def _elements(
        self, groups: Elements, ips: tuple[IPAddress, ...], version: int
    ) -> Elements | None:
        mine = [ip for ip in ips if ip.version == version]
        if not mine:
            return None
        for length in self._lengths[version]:
            found = self._blocks.get(ip_network((mine[0], length), strict=False))
            if found is not None:
                return groups | found
        return groups


def _longest(blocks: Mapping[IPNetwork, Elements], network: IPNetwork) -> Elements:
    for length in range(network.prefixlen, -1, -1):
        found = blocks.get(network.supernet(new_prefix=length))
        if found is not None:
            return found
    return frozenset()
