"""Policies as values: equal content is equal."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from dunlin.events.facts import Protocol
from dunlin.events.intents import PolicyAction, PolicyDirection, PolicyTier
from dunlin.model.addresses import IPAddress, IPNetwork

Labels = Mapping[str, str]
Operator = Literal["In", "NotIn", "Exists", "DoesNotExist"]


class Requirement(NamedTuple):
    """One condition of a label selector; `values` sorted, empty for (DoesNot)Exist."""

    key: str
    operator: Operator
    values: tuple[str, ...] = ()

    def holds(self, labels: Labels) -> bool:
        """As `meta/v1.LabelSelectorRequirement`: NotIn holds where the key is absent."""
        value = labels.get(self.key)
        match self.operator:
            case "In":
                return value is not None and value in self.values
            case "NotIn":
                return value is None or value not in self.values
            case "Exists":
                return value is not None
            case "DoesNotExist":
                return value is None


Selector = tuple[Requirement, ...]
"""Sorted; all must hold; empty: everything."""

EVERYTHING: Selector = ()


def selects(selector: Selector, labels: Labels) -> bool:
    """Every requirement holds."""
    return all(requirement.holds(labels) for requirement in selector)


class Group(NamedTuple):
    """
    Pods of one namespace, or of all namespaces that a selector chooses.

    `namespace` "": those whose labels `namespaces` selects.
    """

    namespace: str = ""
    namespaces: Selector = EVERYTHING
    pods: Selector = EVERYTHING


class _Block(NamedTuple):
    cidr: IPNetwork
    holes: tuple[IPNetwork, ...] = ()


class Block(_Block):
    """
    `networking/v1.IPBlock`; `holes` sorted, each inside of `cidr`.

    It may have a thousand holes: its hash is kept, and `the_block` makes equal ones the same.
    """

    _hash: int | None = None

    def __hash__(self) -> int:
        """As any tuple's."""
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash

    def holds(self, ip: IPAddress) -> bool:
        """It is in the CIDR, and in no hole of it."""
        return ip in self.cidr and not any(ip in hole for hole in self.holes)


@lru_cache(maxsize=1 << 14)
def the_block(block: Block) -> Block:
    """The first one that was equal, so that comparing them is comparing places."""
    return block


Peer = Group | Block


class NamedPort(NamedTuple):
    """A port by its name in the Pod that is connected to."""

    protocol: Protocol | None
    name: str


class PortRange(NamedTuple):
    """Ports of one protocol; 0 … 65535: all of them."""

    protocol: Protocol
    first: int = 0
    last: int = 65535


Port = NamedPort | PortRange


@dataclass(frozen=True, slots=True)
class Rule:
    """
    One rule; `index` counts from 0 within its direction as the object lists them.

    `peers` None: everybody; `ports` None: every protocol and port; empty: nobody, nothing.
    """

    direction: PolicyDirection
    index: int
    action: PolicyAction = "Accept"
    name: str = ""
    peers: tuple[Peer, ...] | None = None
    ports: tuple[Port, ...] | None = None


class PolicyName(NamedTuple):
    """`namespace` "": a ClusterNetworkPolicy."""

    namespace: str
    name: str


@dataclass(frozen=True, slots=True)
class Policy:
    """
    A policy of either kind.

    `directions`: in which it has a say; a tier "default" policy isolates what it selects there.
    `priority`: of a ClusterNetworkPolicy, 0 … 1000, the smaller first; 0 for a NetworkPolicy.
    `log`: what it denies is logged.
    """

    name: PolicyName
    tier: PolicyTier
    subject: Group
    directions: tuple[PolicyDirection, ...]
    rules: tuple[Rule, ...] = ()
    priority: int = 0
    log: bool = False


@dataclass(frozen=True, slots=True)
class Fault:
    """A field that cannot be honoured, and what is done instead."""

    field: str
    reason: str
