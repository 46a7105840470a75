"""The counters of one switch as samples: which number counts for what."""

from collections.abc import Iterator

from dunlin.events.intents import ServicePortIntent
from dunlin_metrics.counters import Bandwidth, Counters, Group, Port, Rule, Traffic
from dunlin_metrics.meter import Part, Sample, Target
from dunlin_metrics.state import State

POD_FIELDS = (
    "receive_bytes",
    "receive_packets",
    "receive_drops",
    "transmit_bytes",
    "transmit_packets",
    "transmit_drops",
)
ROUTE_FIELDS = ("bytes", "packets")
TRAFFIC = "traffic"
TRAFFIC_FIELDS = ("bytes", "packets")
BANDWIDTH = "bandwidth"
BANDWIDTH_FIELDS = ("packets", "bytes")
RULE_FIELDS = ("packets", "bytes", "connections")
DENIED_FIELDS = ("packets", "bytes")


def samples_of(state: State, counters: Counters) -> Iterator[Sample]:
    """
    Everything in one answer whose meaning is known.

    What is not known (an intent that flowctl or this process has not read yet) is left out, and
    counted when it is: the last reading of its source stays.
    """
    for port in counters.ports:
        yield from _port(counters.node, port)
    for flow in counters.flows:
        scope, kind, key = _intent(flow.intent)
        if (scope, kind) == ("all", "route") and key != counters.node:
            target = ("route", counters.node, key)
            source = ("flow", flow.intent, str(flow.table_id), flow.match)
            yield Sample(source, (Part(target, (flow.bytes, flow.packets)),))
    for group in counters.groups:
        intent = state.services.get(group.intent)
        if intent is not None and all(bucket.endpoint for bucket in group.buckets):
            yield _group(intent, group)
    for traffic in counters.services:
        endpoint = state.numbers.get(traffic.endpoint_number)
        if endpoint is not None:
            counted = Part((TRAFFIC, *endpoint[1:]), _traffic(traffic))
            yield Sample((TRAFFIC, traffic.endpoint_number), (counted,))
    for rule in counters.rules:
        yield from _rule(rule)
    for denied in counters.denied:
        part = Part(("denied", denied.direction, *denied.policies), (denied.packets, denied.bytes))
        yield Sample(("denied", denied.intent), (part,))
    for limited in counters.bandwidth:
        yield from _bandwidth(limited)


def _rule(rule: Rule) -> Iterator[Sample]:
    """Sums over all switches: where a packet was judged says nothing about the rule."""
    _scope, kind, key = _intent(rule.intent)
    if kind != "policy":
        return
    target = ("rule", key, rule.direction, str(rule.rule), rule.action, rule.name)
    values = (rule.packets, rule.bytes, rule.connections or 0)
    yield Sample(("rule", rule.intent, str(rule.conj_id)), (Part(target, values),))


def _port(node: str, port: Port) -> Iterator[Sample]:
    """From the Pod's view: what the switch sends is what the Pod receives."""
    _scope, kind, key = _intent(port.intent)
    names = key.split("/")
    if kind != "endpoint" or len(names) != 3:
        return
    namespace, name, _ifname = names
    values = (
        port.tx_bytes, port.tx_packets, port.tx_dropped,
        port.rx_bytes, port.rx_packets, port.rx_dropped,
    )  # fmt: skip
    target = ("pod", namespace, name, node)
    source = ("port", port.name or str(port.port))
    yield Sample(source, (Part(target, tuple(value or 0 for value in values)),))


def _bandwidth(limited: Bandwidth) -> Iterator[Sample]:
    _scope, kind, key = _intent(limited.intent)
    names = key.split("/")
    if kind == "endpoint" and len(names) == 3:
        target = (BANDWIDTH, names[0], names[1], limited.direction)
        values = (limited.dropped_packets, limited.dropped_bytes)
        source = (BANDWIDTH, limited.intent, limited.direction)
        yield Sample(source, (Part(target, values),))


def _group(intent: ServicePortIntent, group: Group) -> Sample:
    parts = tuple(
        Part((*service_target(intent), bucket.endpoint), (bucket.packets,))
        for bucket in group.buckets
    )
    return Sample(("group", str(group.group_id)), parts)


def _traffic(traffic: Traffic) -> tuple[int, ...]:
    return traffic.bytes, traffic.packets


def service_target(intent: ServicePortIntent) -> Target:
    """("endpoint", namespace, service, port); the port by its name, or its number without one."""
    port = intent.port_name or str(intent.port)
    return ("endpoint", intent.service_namespace, intent.service_name, port)


def _intent(intent_id: str) -> tuple[str, str, str]:
    """(scope, kind, key), all "" for what is no intent id."""
    parts = intent_id.split("/", 2)
    return (parts[0], parts[1], parts[2]) if len(parts) == 3 else ("", "", "")
