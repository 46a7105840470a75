"""What REST and the page show of the state. Pure: plain dicts and lists."""

from collections.abc import Iterator
from typing import Any

from dunlin.events.intents import ServicePortIntent
from dunlin.model.ids import format_dpid
from dunlin.pipeline.route import link
from dunlin_metrics.meter import Target, Total
from dunlin_metrics.samples import POD_FIELDS, ROUTE_FIELDS
from dunlin_metrics.spread import shares
from dunlin_metrics.state import State

LINKS_MAX_NODES = 64
"""Beyond so many nodes only links with traffic are listed: there would be too many."""


def topology(state: State) -> dict[str, Any]:
    """Nodes, links between them, Pods."""
    return {
        "nodes": [_node(state, name) for name in state.node_names()],
        "links": list(_links(state)),
        "pods": list(_pods(state)),
    }


def _node(state: State, name: str) -> dict[str, Any]:
    fact, switch, applied = (
        state.nodes.get(name), state.switch_facts.get(name), state.applied.get(name)
    )  # fmt: skip
    return {
        "name": name,
        "ips": [str(ip) for ip in fact.ips] if fact else [],
        "pod_cidrs": [str(cidr) for cidr in fact.pod_cidrs] if fact else [],
        "zone": fact.zone if fact else "",
        "ready": bool(fact and fact.ready),
        "dpid": format_dpid(switch.dpid) if switch else "",
        "datapath": switch.datapath if switch else "",
        "ovs_version": switch.ovs_version if switch else "",
        "connected": bool(applied and applied.connected),
        "flows": applied.flows if applied else 0,
        "groups": applied.groups if applied else 0,
        "pending": applied.pending if applied else 0,
        "errors": len(applied.errors) if applied else 0,
        "programming_ms": applied.programming_ms if applied else None,
        "polled_ms": state.meter.read_ms.get(name),
    }


def _links(state: State) -> Iterator[dict[str, Any]]:
    """Each ordered pair of nodes: how the source's switch reaches the destination, and how much."""
    names = state.node_names()
    totals: dict[tuple[str, str], tuple[int, int]] = {
        (target[1], target[2]): (total.values[0], total.values[1])
        for target, total in state.meter.of("route")
    }
    pairs = (
        [(a, b) for a in names for b in names if a != b] if len(names) <= LINKS_MAX_NODES else []
    )
    for pair in sorted({*pairs, *totals}):
        octets, packets = totals.get(pair, (0, 0))
        yield {
            "source": pair[0],
            "destination": pair[1],
            "via": link_via(state, *pair),
            "bytes": octets,
            "packets": packets,
        }


def link_via(state: State, source: str, destination: str) -> str:
    """`direct`, `geneve`, `vxlan`, `tunnel`, or "" where there is no way (yet)."""
    switch, route = state.switches.get(source), state.routes.get(destination)
    if switch is None or route is None:
        return ""
    by = link(route, switch)
    if by != "tunnel":
        return "direct" if by else ""
    fact = state.switch_facts.get(source)
    return (fact.tunnel_type if fact else "") or "tunnel"


def _pods(state: State) -> Iterator[dict[str, Any]]:
    """Pods with an interface, and those that wait for one; not those on their node's network."""
    attached = {(e.pod_namespace, e.pod_name): e for e in state.endpoints.values()}
    for key in sorted({*attached, *state.pods}):
        endpoint, pod = attached.get(key), state.pods.get(key)
        if endpoint is None and (pod is None or pod.host_network or pod.finished):
            continue
        ips = endpoint.ips if endpoint else pod.ips if pod else ()
        yield {
            "namespace": key[0],
            "name": key[1],
            "node": endpoint.scope if endpoint else pod.node if pod else "",
            "ips": [str(ip) for ip in ips],
            "mac": endpoint.mac if endpoint else "",
            "ofport": endpoint.ofport if endpoint else 0,
            "ready": bool(pod and pod.ready),
            "attached": endpoint is not None,
        }


def traffic_of_pods(state: State, namespace: str | None = None) -> list[dict[str, Any]]:
    """Totals of each Pod, from its own view."""
    return [
        {"namespace": target[1], "name": target[2], "node": target[3]} | _numbers(POD_FIELDS, total)
        for target, total in sorted(state.meter.of("pod"), key=_by_target)
        if namespace is None or target[1] == namespace
    ]


def traffic_of_nodes(state: State) -> list[dict[str, Any]]:
    """Totals of each ordered pair of nodes."""
    return [
        {"source": target[1], "destination": target[2]} | _numbers(ROUTE_FIELDS, total)
        for target, total in sorted(state.meter.of("route"), key=_by_target)
    ]


def _numbers(fields: tuple[str, ...], total: Total) -> dict[str, float]:
    """Totals under their names, and `…_per_s` between the last two readings."""
    rates = {f"{field}_per_s": rate for field, rate in zip(fields, total.per_second, strict=True)}
    return dict(zip(fields, total.values, strict=True)) | rates


def services(state: State, namespace: str | None = None) -> list[dict[str, Any]]:
    """Each ServicePort with the spread over its endpoints."""
    found = sorted(state.services.values(), key=lambda intent: intent.key)
    return [
        _service(state, intent)
        for intent in found
        if namespace is None or intent.service_namespace == namespace
    ]


def _service(state: State, intent: ServicePortIntent) -> dict[str, Any]:
    return {
        "namespace": intent.service_namespace,
        "name": intent.service_name,
        "port_name": intent.port_name,
        "port": intent.port,
        "protocol": intent.protocol.value,
        "addresses": [str(address.ip) for address in intent.addresses],
        "intent": intent.id,
        "endpoints": [
            {
                "endpoint": share.target[-1],
                "pod": share.endpoint.target,
                "node": _node_of(state, share.endpoint.target),
                "connections": share.connections,
                "bytes": share.bytes,
                "recent_connections": share.recent,
                "share": share.measured,
                "intended": share.intended,
                "ratio": None if share.measured is None else share.measured / share.intended,
            }
            for share in shares(state, intent)
        ],
    }


def _node_of(state: State, target: str) -> str:
    namespace, _slash, name = target.partition("/")
    pod = state.pods.get((namespace, name))
    return pod.node if pod else ""


def _by_target(item: tuple[Target, object]) -> Target:
    return item[0]
