"""Nodes -> the RouteIntent of each: how all other nodes reach its Pods."""

from collections.abc import Iterator
from typing import Literal

from dunlin.events.findings import Finding
from dunlin.events.intents import RouteIntent
from dunlin_planner.core.nodes import NodeView
from dunlin_planner.state import State


def plan_route(state: State, view: NodeView) -> RouteIntent:
    """The way to one node, the same for every other node."""
    return RouteIntent(
        scope="all",
        key=view.node.name,
        object=f"node/{view.node.name}",
        cidrs=view.cidrs,
        addresses=view.addresses,
        router_mac=view.switch.router_mac,
        encapsulation=_encapsulation(state),
    )


def _encapsulation(state: State) -> Literal["auto", "none", "tunnel"]:
    match state.cluster.encapsulation:
        case "geneve" | "vxlan":
            return "tunnel"
        case "none":
            return "none"
        case "auto":
            return "auto"


def route_findings(state: State, view: NodeView) -> Iterator[Finding]:
    """Where a node's switch cannot do what the installation asks for."""
    asked = state.cluster.encapsulation
    has = view.switch.tunnel_type if view.switch.tunnel_port else ""
    if asked in ("geneve", "vxlan") and has != asked:
        reason = f"the installation tunnels by {asked}, this switch has {has or 'no tunnel port'}"
        yield Finding(
            kind="Node",
            name=view.node.name,
            field="switch.tunnel_type",
            severity="invalid",
            reason=reason,
        )
