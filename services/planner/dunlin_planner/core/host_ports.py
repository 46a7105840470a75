"""
Which Pods ask for hostPorts, and who has one that two ask for: the older Pod.

kube-scheduler lets no two Pods of a node ask for the same (host IP, port, protocol), but Pods that
it has not placed (static ones, `spec.nodeName`) may. ADR 0041.
"""

from collections.abc import Hashable
from typing import NamedTuple, TypeVar

from dunlin.events.facts import ContainerPort, PodFact, Protocol
from dunlin.model.addresses import IPAddress
from dunlin_planner.core.events import Unit
from dunlin_planner.core.policy.groups import PodName

KIND = "hostport"
Key = TypeVar("Key", bound=Hashable)


class Place(NamedTuple):
    """A port of a node: what two Pods may both ask for."""

    node: str
    protocol: Protocol
    port: int


class Wish(NamedTuple):
    """One hostPort of a Pod. `version`: of IP that it is confined to; `ip`: one address."""

    place: Place
    version: int | None
    ip: IPAddress | None
    target: int
    text: str

    def clashes(self, other: "Wish") -> bool:
        """Some packet would be for both; the very same twice is none."""
        if self.place != other.place:
            return False
        if self.version is not None and other.version not in (None, self.version):
            return False
        return self.ip is None or other.ip in (None, self.ip)

    @property
    def key(self) -> str:
        """What of the intent's key follows the Pod."""
        at = f"@{self.text}" if self.text else ""
        return f"{self.place.port}{at}/{self.place.protocol}"


class Claim(NamedTuple):
    """What one Pod asks for; the smallest `order` has it: the oldest Pod."""

    order: tuple[int, str, PodName]
    wishes: tuple[Wish, ...]


def wishes_of(pod: PodFact) -> tuple[Wish, ...]:
    """Nothing for a Pod that is on no node yet, has finished, or is on host network."""
    if not pod.node or pod.host_network or pod.finished:
        return ()
    found = (_wish(pod.node, port) for port in pod.ports if port.host_port)
    return tuple(dict.fromkeys(found))


def _wish(node: str, port: ContainerPort) -> Wish:
    place, ip = Place(node, port.protocol, port.host_port), port.host_ip
    if ip is None:
        return Wish(place, None, None, port.port, "")
    return Wish(place, ip.version, None if ip.is_unspecified else ip, port.port, str(ip))


class HostPorts:
    """The Pods that ask for hostPorts; a change costs what it names, and its rivals."""

    def __init__(self) -> None:
        self.claims: dict[PodName, Claim] = {}
        self._at: dict[Place, set[PodName]] = {}
        self._on: dict[str, set[PodName]] = {}
        self._numbered: dict[tuple[Protocol, int], set[PodName]] = {}

    def put(self, name: PodName, pod: PodFact | None) -> set[Unit]:
        """The newest state of a Pod, None: gone; returns whose plan may be another."""
        wishes = wishes_of(pod) if pod is not None else ()
        old = self.claims.get(name)
        touched = self._forget(name)
        if pod is not None and wishes:
            self.claims[name] = Claim((pod.created_ms, pod.meta.uid, name), wishes)
            self._on.setdefault(pod.node, set()).add(name)
            for wish in wishes:
                touched |= self._at.setdefault(wish.place, set())
                self._at[wish.place].add(name)
                number = (wish.place.protocol, wish.place.port)
                self._numbered.setdefault(number, set()).add(name)
        if old is None and not wishes:
            return set()
        return {unit_of(pod_name) for pod_name in touched | {name}}

    def _forget(self, name: PodName) -> set[PodName]:
        """Its rivals."""
        old = self.claims.pop(name, None)
        rivals: set[PodName] = set()
        for wish in old.wishes if old is not None else ():
            _discard(self._on, wish.place.node, name)
            _discard(self._at, wish.place, name)
            _discard(self._numbered, (wish.place.protocol, wish.place.port), name)
            rivals |= self._at.get(wish.place, set())
        return rivals

    def units(self) -> set[Unit]:
        """Everything that may have a plan."""
        return set(map(unit_of, self.claims))

    def of(self, name: PodName) -> set[Unit]:
        """The unit of a Pod, if it asks for any."""
        return {unit_of(name)} if name in self.claims else set()

    def on(self, node: str) -> set[Unit]:
        """Those of the Pods of a node."""
        return set(map(unit_of, self._on.get(node, ())))

    def at_number(self, protocol: Protocol, port: int) -> set[Unit]:
        """Those that ask for this port, on whatever node."""
        return set(map(unit_of, self._numbered.get((protocol, port), ())))

    def holder(self, name: PodName, wish: Wish) -> PodName | None:
        """The Pod that has what `name` wishes for; None: itself."""
        granted: list[tuple[PodName, Wish]] = []
        for pod in sorted(self._at[wish.place], key=lambda pod: self.claims[pod].order):
            for one in self.claims[pod].wishes:
                rival = next((who for who, had in granted if had.clashes(one)), None)
                if (pod, one) == (name, wish):
                    return rival
                if rival is None:
                    granted.append((pod, one))
        raise KeyError(f"{name} does not ask for {wish}")


def _discard(index: dict[Key, set[PodName]], key: Key, name: PodName) -> None:
    found = index.get(key, set())
    found.discard(name)
    if not found:
        index.pop(key, None)


def unit_of(name: PodName) -> Unit:
    """All hostPorts of a Pod are planned as one."""
    return Unit(KIND, *name)
