"""Which endpoints serve a ServicePort, by family: as kube-proxy's CategorizeEndpoints."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from dunlin.events.facts import Endpoint, EndpointSliceFact, Protocol
from dunlin.events.intents import ServiceEndpoint
from dunlin.model.addresses import IPAddress


@dataclass(frozen=True, slots=True)
class Candidate:
    """One address and port of one EndpointSlice or, after `merge`, of all of them."""

    ip: IPAddress
    port: int
    ready: bool
    serving: bool
    terminating: bool
    node: str = ""
    zone: str = ""
    target: str = ""
    hint_zones: tuple[str, ...] = ()
    hint_nodes: tuple[str, ...] = ()

    @property
    def order(self) -> tuple[int, int, int]:
        """IPv4 before IPv6, then by address, then by port."""
        return self.ip.version, int(self.ip), self.port


@dataclass(frozen=True, slots=True)
class EndpointSets:
    """
    The endpoints of one family of a ServicePort; sets are sorted, only `cluster` may be empty.

    `cluster`: where traffic goes under the policy Cluster; empty: there is no endpoint at all.
    `zones`, `nodes`: where it goes instead in a zone, on a node, by topology hints; the node's come
    first. `local`: node -> where it goes there under the policy Local.
    """

    cluster: tuple[Candidate, ...] = ()
    zones: dict[str, tuple[Candidate, ...]] = field(default_factory=dict)
    nodes: dict[str, tuple[Candidate, ...]] = field(default_factory=dict)
    local: dict[str, tuple[Candidate, ...]] = field(default_factory=dict)


def candidates(
    slices: Iterable[EndpointSliceFact], port_name: str, protocol: Protocol
) -> tuple[Candidate, ...]:
    """
    Every endpoint of `slices` whose port has this name and protocol.

    Sorted, each address and port once.

    An endpoint that several slices list (while the controller moves it) is as good as its best
    entry.
    """
    best: dict[tuple[IPAddress, int], Candidate] = {}
    for endpoint_slice in slices:
        for port in endpoint_slice.ports:
            if port.name != port_name or port.protocol != protocol:
                continue
            for endpoint in endpoint_slice.endpoints:
                found = _candidate(endpoint, port.port)
                known = best.get((found.ip, found.port))
                if known is None or _quality(found) > _quality(known):
                    best[found.ip, found.port] = found
    return tuple(sorted(best.values(), key=lambda candidate: candidate.order))


def _candidate(endpoint: Endpoint, port: int) -> Candidate:
    return Candidate(
        ip=endpoint.ip,
        port=port,
        ready=endpoint.ready,
        serving=endpoint.serving,
        terminating=endpoint.terminating,
        node=endpoint.node,
        zone=endpoint.zone,
        target=endpoint.target,
        hint_zones=endpoint.hint_zones,
        hint_nodes=endpoint.hint_nodes,
    )


def _quality(candidate: Candidate) -> tuple[object, ...]:
    """A total order, so that the better entry does not depend on which slice was read first."""
    return (
        candidate.ready,
        candidate.serving,
        not candidate.terminating,
        candidate.node,
        candidate.target,
        candidate.zone,
        candidate.hint_zones,
        candidate.hint_nodes,
    )


def usable(pool: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """The ready ones; when there is none, those that still serve while they terminate."""
    known = tuple(pool)
    ready = tuple(candidate for candidate in known if candidate.ready)
    return ready or tuple(c for c in known if c.serving and c.terminating)


def categorize(pool: Iterable[Candidate], *, uses_local: bool = False) -> EndpointSets:
    """
    Sorts the endpoints of one family into the sets that traffic policies choose from.

    Args:
        pool: sorted, of one family.
        uses_local: some traffic follows the policy Local; the fall-back is then per node.
    """
    known = tuple(pool)
    ready = [candidate for candidate in known if candidate.ready]
    return EndpointSets(
        cluster=usable(known),
        zones=_hinted(ready, lambda candidate: candidate.hint_zones),
        nodes=_hinted(ready, lambda candidate: candidate.hint_nodes),
        local=_local(known) if uses_local else {},
    )


def _local(known: Iterable[Candidate]) -> dict[str, tuple[Candidate, ...]]:
    by_node: dict[str, list[Candidate]] = {}
    for candidate in known:
        if candidate.node:
            by_node.setdefault(candidate.node, []).append(candidate)
    return {node: found for node, group in by_node.items() if (found := usable(group))}


def _hinted(
    ready: Iterable[Candidate], hints: Callable[[Candidate], tuple[str, ...]]
) -> dict[str, tuple[Candidate, ...]]:
    """By hint, if every ready endpoint has one: half of the hints would overload some of them."""
    found: dict[str, list[Candidate]] = {}
    for candidate in ready:
        if not hints(candidate):
            return {}
        for name in dict.fromkeys(hints(candidate)):
            found.setdefault(name, []).append(candidate)
    return {name: tuple(chosen) for name, chosen in found.items()}


def service_endpoint(candidate: Candidate) -> ServiceEndpoint:
    """As it stands in an intent."""
    return ServiceEndpoint(ip=candidate.ip, port=candidate.port, target=candidate.target)
