"""What the agent knows: its node, and what the fact stream says of it and of the others."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from dunlin import subjects
from dunlin.events.facts import AttachmentFact, SwitchFact
from dunlin.model.addresses import IPAddress, MacAddress
from dunlin_agent.adapters.ovs_spec import PodPort

OwnFact = AttachmentFact | SwitchFact


class Stored(NamedTuple):
    """The newest message of one of our subjects; `fact` None: a tombstone (or unreadable)."""

    seq: int
    fact: OwnFact | None


class Neighbour(NamedTuple):
    """A tunnel end to be known to one life of ovs-vswitchd."""

    incarnation: str
    ip: IPAddress
    mac: MacAddress


def _empty() -> Mapping[str, Stored]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True)
class State:
    """
    Everything that decisions are made from. `ports` and `switch` None: not observed yet.

    `stored` is by subject, in the life `epoch` of the stream, complete once `caught_up`.
    `internal_ips`: of this Node, as last heard.
    """

    node: str
    ports: tuple[PodPort, ...] | None = None
    switch: SwitchFact | None = None
    epoch: str = ""
    caught_up: bool = False
    stored: Mapping[str, Stored] = field(default_factory=_empty)
    peers: Mapping[str, SwitchFact] = field(default_factory=lambda: MappingProxyType({}))
    seeded: frozenset[Neighbour] = frozenset()
    internal_ips: tuple[IPAddress, ...] = ()

    @property
    def switch_subject(self) -> str:
        """Where this node's switch fact is."""
        return subjects.fact("switch", "", self.node)
