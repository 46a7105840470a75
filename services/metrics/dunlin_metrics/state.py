"""What the metrics service knows. Changed in place by `dunlin_metrics.core.step` alone."""

from dataclasses import dataclass, field
from typing import NamedTuple

from dunlin.events.facts import NodeFact, SwitchFact
from dunlin.events.intents import (
    EndpointIntent,
    PolicyIntent,
    RouteIntent,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin.events.state import Applied
from dunlin.model.addresses import IPAddress
from dunlin_metrics.meter import Meter, Target


class Pod(NamedTuple):
    """What is shown of a Pod; compact, there may be 150,000."""

    node: str
    ips: tuple[IPAddress, ...]
    ready: bool
    host_network: bool
    finished: bool


@dataclass
class Spread:
    """New connections of one ServicePort by endpoint since its endpoints changed last."""

    endpoints: frozenset[str]
    connections: dict[str, int] = field(default_factory=dict)


@dataclass
class State:
    """
    Everything; services, policies and endpoints by intent id, the rest by node.

    `spreads` by service target. `numbers`: what an endpoint's number in ct_label stands for:
    its ServicePort's target and its text. `caught_up`: streams that have been read to their end.
    """

    nodes: dict[str, NodeFact] = field(default_factory=dict)
    pods: dict[tuple[str, str], Pod] = field(default_factory=dict)
    switch_facts: dict[str, SwitchFact] = field(default_factory=dict)
    switches: dict[str, SwitchIntent] = field(default_factory=dict)
    endpoints: dict[str, EndpointIntent] = field(default_factory=dict)
    routes: dict[str, RouteIntent] = field(default_factory=dict)
    services: dict[str, ServicePortIntent] = field(default_factory=dict)
    policies: dict[str, PolicyIntent] = field(default_factory=dict)
    applied: dict[str, Applied] = field(default_factory=dict)
    meter: Meter = field(default_factory=Meter)
    spreads: dict[Target, Spread] = field(default_factory=dict)
    numbers: dict[str, Target] = field(default_factory=dict)
    caught_up: set[str] = field(default_factory=set)

    def node_names(self) -> list[str]:
        """Every node that has a fact, a switch or an acknowledgement."""
        return sorted({*self.nodes, *self.switch_facts, *self.switches})


def endpoint_text(ip: IPAddress, port: int) -> str:
    """`10.0.1.5:80`, `[fd00::5]:80`."""
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
