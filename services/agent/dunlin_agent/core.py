"""
What the agent tells the bus, and OVS about its peers, as a function of what it has observed.

Level-triggered: `step` gives all that is still to be done, until an event says that it was done.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, TypeAlias, assert_never

import msgspec

from dunlin.events.facts import AttachmentFact, Meta, SwitchFact
from dunlin.model.addresses import IPAddress
from dunlin_agent.adapters.ovs_spec import PodPort
from dunlin_agent.state import Neighbour, OwnFact, State, Stored

# --- events ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PortsObserved:
    """The Pod ports of br-int, all of them."""

    ports: tuple[PodPort, ...]


@dataclass(frozen=True, slots=True)
class SwitchObserved:
    """The node is set up, and this is what its switch fact must say."""

    switch: SwitchFact


@dataclass(frozen=True, slots=True)
class FactRead:
    """The newest message of `subject`, read or stored by ourselves; `None`: a tombstone."""

    subject: str
    seq: int
    fact: OwnFact | None


@dataclass(frozen=True, slots=True)
class StreamBegan:
    """The stream's life `epoch` begins; nothing known before counts."""

    epoch: str


@dataclass(frozen=True, slots=True)
class StreamCaughtUp:
    """The state of the stream has been read."""


@dataclass(frozen=True, slots=True)
class NeighbourSeeded:
    """That life of ovs-vswitchd knows this tunnel end."""

    neighbour: Neighbour


@dataclass(frozen=True, slots=True)
class NodeRead:
    """The InternalIPs of this node's Node."""

    internal_ips: tuple[IPAddress, ...]


Event: TypeAlias = (
    PortsObserved
    | SwitchObserved
    | FactRead
    | StreamBegan
    | StreamCaughtUp
    | NeighbourSeeded
    | NodeRead
)

# --- what is to be done ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Publish:
    """Write this fact."""

    fact: OwnFact


@dataclass(frozen=True, slots=True)
class Retract:
    """Write a tombstone."""

    subject: str


@dataclass(frozen=True, slots=True)
class Seed:
    """Tell OVS a tunnel end's MAC."""

    neighbour: Neighbour


Effect: TypeAlias = Publish | Retract | Seed


def step(state: State, event: Event) -> tuple[State, tuple[Effect, ...]]:
    """The next state, and everything that it still asks for."""
    after = _apply(state, event)
    return after, tuple(plan(after))


def plan(state: State) -> Iterator[Effect]:
    """
    Attachments first; the switch fact only when the stream says the truth about all of them.

    Nothing before the ports of the node and the stream's own words are known: a tombstone for what
    was merely not read yet would take a running Pod's flows away.
    """
    if state.ports is not None and state.caught_up:
        changes = tuple(_attachment_changes(state, state.ports))
        yield from changes
        if not changes and state.switch is not None:
            stored = state.stored.get(state.switch_subject)
            if stored is None or not _same(stored.fact, state.switch):
                yield Publish(state.switch)
    yield from _seeds(state)


def attachment_of(node: str, port: PodPort) -> AttachmentFact | None:
    """The fact of a Pod port; None while OVS has given it no OpenFlow port."""
    if port.ofport == 0 or not port.pod_name:
        return None
    return AttachmentFact(
        namespace=node,
        name=f"{port.container_id}/{port.ifname}",
        pod_namespace=port.pod_namespace,
        pod_name=port.pod_name,
        pod_uid=port.pod_uid,
        container_id=port.container_id,
        ifname=port.ifname,
        netns=port.netns,
        ips=port.ips,
        mac=port.mac,
        ofport=port.ofport,
        port_name=port.port_name,
    )


def tunnel_of(
    encapsulation: Literal["auto", "none", "geneve", "vxlan"],
    own: tuple[IPAddress, ...],
    state: State,
) -> Literal["", "geneve", "vxlan"]:
    """The tunnel port that br-int needs: with auto, geneve once a peer is on no subnet of ours."""
    if encapsulation == "none":
        return ""
    if encapsulation != "auto":
        return encapsulation
    for peer in state.peers.values():
        subnets = [address.subnet for address in peer.addresses]
        shared = any(
            ip.version == subnet.version and ip in subnet for ip in own for subnet in subnets
        )
        if peer.name != state.node and subnets and own and not shared:
            return "geneve"
    return ""


def sources_of(
    usable: tuple[IPAddress, ...], internal_ips: tuple[IPAddress, ...]
) -> tuple[IPAddress, ...]:
    """
    What the node's processes send to Pods from: one of each family that there is.

    The Node's first InternalIP that the node has here; else its first address: other nodes have
    routes to all of these, and to no others.
    """
    found: dict[int, IPAddress] = {}
    for ip in (*(ip for ip in internal_ips if ip in usable), *usable):
        found.setdefault(ip.version, ip)
    return tuple(found[version] for version in sorted(found))


def keeps_peers_mtu(ovs_version: str, *, userspace_tso: bool) -> bool:
    """
    TCP segments are no larger than their receiver and its path take.

    Measured: with userspace-tso Open vSwitch 3.1 cuts what a Pod sends at once to its own port's
    MTU, whatever the Pod has learned; 3.5 does not. What is between was not looked at.
    """
    numbers = ovs_version.split(".")
    readable = len(numbers) >= 2 and numbers[0].isdigit() and numbers[1].isdigit()
    return not userspace_tso or (readable and (int(numbers[0]), int(numbers[1])) >= (3, 5))


def is_stored(state: State, fact: OwnFact) -> int | None:
    """The sequence under which the stream says exactly this; None: it does not."""
    stored = state.stored.get(fact.subject)
    return stored.seq if stored is not None and _same(stored.fact, fact) else None


# --- leaves ---------------------------------------------------------------------------------------


def _apply(state: State, event: Event) -> State:
    match event:
        case PortsObserved():
            return replace(state, ports=event.ports)
        case SwitchObserved():
            return replace(state, switch=event.switch)
        case FactRead():
            return _read(state, event)
        case StreamBegan():
            nothing: Mapping[str, Stored] = MappingProxyType({})
            peers: Mapping[str, SwitchFact] = MappingProxyType({})
            return replace(state, epoch=event.epoch, caught_up=False, stored=nothing, peers=peers)
        case StreamCaughtUp():
            return replace(state, caught_up=True)
        case NeighbourSeeded():
            return replace(state, seeded=state.seeded | {event.neighbour})
        case NodeRead():
            return replace(state, internal_ips=event.internal_ips)
        case _:
            assert_never(event)


def _read(state: State, event: FactRead) -> State:
    """Our own subjects are `stored`, the switches of others `peers`; older news changes nothing."""
    if event.subject.startswith(_switches_prefix(state)) and event.subject != state.switch_subject:
        peers = dict(state.peers)
        if isinstance(event.fact, SwitchFact):
            peers[event.subject] = event.fact
        else:
            peers.pop(event.subject, None)
        return replace(state, peers=MappingProxyType(peers))
    known = state.stored.get(event.subject)
    if known is not None and known.seq >= event.seq:
        return state
    stored = {**state.stored, event.subject: Stored(event.seq, event.fact)}
    return replace(state, stored=MappingProxyType(stored))


def _switches_prefix(state: State) -> str:
    return state.switch_subject.rpartition(".")[0] + "."


def _attachment_changes(state: State, ports: tuple[PodPort, ...]) -> Iterator[Effect]:
    facts = [fact for port in ports if (fact := attachment_of(state.node, port)) is not None]
    wanted = {fact.subject for fact in facts}
    for subject, stored in sorted(state.stored.items()):
        gone = subject not in wanted and subject != state.switch_subject
        if gone and stored.fact is not None:
            yield Retract(subject)
    for fact in facts:
        if is_stored(state, fact) is None:
            yield Publish(fact)


def _seeds(state: State) -> Iterator[Effect]:
    """Tunnel ends of every peer on a subnet of ours, and the next hops to all others."""
    if state.switch is None or not state.switch.tunnel_port:
        return
    incarnation = state.switch.incarnation
    wanted = {Neighbour(incarnation, hop.ip, hop.mac) for hop in state.switch.next_hops}
    for peer in state.peers.values():
        for address in peer.addresses:
            if any(address.subnet == own.subnet for own in state.switch.addresses):
                wanted.add(Neighbour(incarnation, address.ip, peer.uplink_mac))
    for neighbour in sorted(wanted - state.seeded, key=str):
        yield Seed(neighbour)


def _same(stored: OwnFact | None, wanted: OwnFact) -> bool:
    """Equal but for where they come from."""
    if stored is None:
        return False
    bare: OwnFact = msgspec.structs.replace(stored, meta=Meta())
    return bare == msgspec.structs.replace(wanted, meta=Meta())
