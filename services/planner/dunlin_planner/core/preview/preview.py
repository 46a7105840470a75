"""Today's facts plus a change, through the planner: reachability, flows, and what would be cut."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from dunlin.events.facts import (
    AttachmentFact,
    ClusterNetworkPolicyFact,
    Fact,
    NamespaceFact,
    NetworkPolicyFact,
    PodFact,
    SwitchFact,
    kind_of,
)
from dunlin.events.intents import AnyIntent
from dunlin.model.addresses import IPAddress
from dunlin_planner.core.events import Deleted, Event, Unit, Upserted
from dunlin_planner.core.policy.groups import PodName
from dunlin_planner.core.policy.index import GENERATION
from dunlin_planner.core.preview.flows import Delta, deltas
from dunlin_planner.core.preview.judge import Judge
from dunlin_planner.core.preview.ports import Ports, has
from dunlin_planner.core.preview.reach import Reach, Workload, changes, workload_of
from dunlin_planner.core.preview.sides import Moment, Side, moment
from dunlin_planner.core.step import plan
from dunlin_planner.state import State

NEEDED = (NamespaceFact, NetworkPolicyFact, ClusterNetworkPolicyFact, PodFact, AttachmentFact)
"""Facts that policy depends on, in the order in which an index of them is built fastest."""
Intents: TypeAlias = tuple[AnyIntent, ...]


class Connection(NamedTuple):
    """
    Who has begun a connection with whom, after translation: the real endpoint, its port.

    `protocol`: TCP, UDP, SCTP, or another's name, whose `port` is 0.
    """

    protocol: str
    source: IPAddress
    destination: IPAddress
    port: int


@dataclass(frozen=True)
class Preview:
    """`flows`: as `flows.deltas`; `nodes`: that have a switch."""

    reach: Reach
    flows: Mapping[str, Delta]
    nodes: tuple[str, ...]
    _judges: tuple[Judge, Judge]
    moments: tuple[Moment, Moment]
    _pods: Mapping[IPAddress, PodName]
    _workloads: Mapping[PodName, Workload]
    _homes: Mapping[PodName, str]
    _nodes: Mapping[IPAddress, str]

    def closes(self) -> frozenset[PodName]:
        """Pods of workloads that lose something as either end; nobody else's need be asked."""
        losing = {end for row in self.reach.rows if row.closed for end in row[:2]}
        if not self.reach.complete:
            return frozenset(self._workloads)
        return frozenset(pod for pod, load in self._workloads.items() if load in losing)

    def addresses(self, pods: frozenset[PodName]) -> frozenset[IPAddress]:
        """Where these Pods are reached."""
        return frozenset(ip for ip, pod in self._pods.items() if pod in pods)

    def pod(self, ip: IPAddress) -> PodName | None:
        """The Pod that has this address."""
        return self._pods.get(ip)

    def workload(self, ip: IPAddress) -> Workload:
        """Who has this address, for people."""
        pod = self._pods.get(ip)
        return self._workloads[pod] if pod is not None else Workload("", f"outside {ip}")

    def is_cut(self, connection: Connection) -> bool:
        """It is allowed now, and would not be."""
        if connection.source == connection.destination or self._is_at_home(connection):
            return False
        verdicts = (
            self._allows(judge, now, connection)
            for judge, now in zip(self._judges, self.moments, strict=True)
        )
        return tuple(verdicts) == (True, False)

    def _is_at_home(self, connection: Connection) -> bool:
        """A Pod and its own node: policies say nothing about them."""
        for pod_ip, node_ip in (connection[1:3], connection[2:0:-1]):
            pod = self._pods.get(pod_ip)
            if pod is not None and self._nodes.get(node_ip) == self._homes[pod]:
                return True
        return False

    def _allows(self, judge: Judge, now: Moment, connection: Connection) -> bool:
        source, destination = (self._side(now, ip) for ip in connection[1:3])
        family = 0 if connection.source.version == 4 else 1
        if source.elements[family] is None or destination.elements[family] is None:
            return True
        ports = judge.reach(source, destination, family)
        return has(ports, connection.protocol, connection.port)

    def _side(self, now: Moment, ip: IPAddress) -> Side:
        pod = self._pods.get(ip)
        if pod is not None and pod in now.pods:
            return now.pods[pod]
        return now.outside_address(ip)


def preview(facts: Mapping[str, Iterable[Fact]], events: Sequence[Event]) -> Preview:
    """
    What `events` would do.

    `facts`: by kind, all that there are, of `NEEDED` and switches. Nothing of it is changed.
    """
    state = State(shards=frozenset())
    for kind in NEEDED:
        for fact in facts.get(kind_of(kind), ()):
            state.put(fact)
    undo = _inverse(state, events)
    before = moment(state.policy)
    touched = _apply(state, events)
    after = moment(state.policy)
    touched |= _apply(state, undo)
    touched.discard(GENERATION)
    old = _plans(state, touched)
    _apply(state, events)
    new = _plans(state, touched)
    workloads = {pod: workload_of(pod, fact.labels) for pod, fact in state.policy.pods.items()}
    known: dict[Ports, Ports] = {}
    switches = [f for f in facts.get(kind_of(SwitchFact), ()) if isinstance(f, SwitchFact)]
    return Preview(
        reach=changes(before, after, workloads),
        flows=deltas(old, new),
        nodes=tuple(sorted(switch.name for switch in switches)),
        _judges=(Judge(before, known), Judge(after, known)),
        moments=(before, after),
        _pods={ip: pod for pod in state.policy.pods for ip in state.policy.addresses(pod)},
        _workloads=workloads,
        _homes={pod: fact.node for pod, fact in state.policy.pods.items()},
        _nodes={
            ip: switch.name
            for switch in switches
            for ip in (*switch.gateway_ips, *(address.ip for address in switch.addresses))
        },
    )


def _apply(state: State, events: Iterable[Event]) -> set[Unit]:
    touched: set[Unit] = set()
    for event in events:
        match event:
            case Upserted(fact):
                touched |= state.put(fact)
            case Deleted(kind, namespace, name):
                touched |= state.drop(kind, namespace, name)
            case _:
                raise ValueError(f"no change of an object: {event}")
    return touched


def _inverse(state: State, events: Iterable[Event]) -> list[Event]:
    """Events that bring back what stands now; each object once."""
    found: dict[tuple[str, str, str], Event] = {}
    for event in events:
        match event:
            case Upserted(fact):
                key = (kind_of(type(fact)), fact.namespace, fact.name)
            case Deleted(kind, namespace, name):
                key = (kind, namespace, name)
            case _:
                raise ValueError(f"no change of an object: {event}")
        old = state.find(*key)
        found[key] = Deleted(*key) if old is None else Upserted(old)
    return list(found.values())


def _plans(state: State, units: Iterable[Unit]) -> Intents:
    return tuple(intent for unit in sorted(units) for intent in plan(state, unit).intents)
