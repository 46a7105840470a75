"""Facts, intents, acknowledgements and counters in; state out. Pure: no I/O, no clock."""

from typing import assert_never

import msgspec

from dunlin import subjects, wire
from dunlin.bus.base import Record
from dunlin.events.facts import AnyFact, Fact, NodeFact, PodFact, SwitchFact
from dunlin.events.intents import (
    AnyIntent,
    EndpointIntent,
    Intent,
    PolicyIntent,
    RouteIntent,
    ServicePortIntent,
    SwitchIntent,
    intent_id,
)
from dunlin.events.state import Applied
from dunlin.pipeline.traffic import endpoint_number
from dunlin_metrics.events import NOTHING, Event, Outcome, Polled, StreamRead, Tick
from dunlin_metrics.meter import Target
from dunlin_metrics.samples import samples_of, service_target
from dunlin_metrics.state import Pod, Spread, State, endpoint_text


def step(state: State, event: Event) -> Outcome:
    """Take one event in; changes `state` in place."""
    match event:
        case StreamRead():
            return _stream_read(state, event)
        case Polled():
            _polled(state, event)
        case Tick():
            state.meter.forget(event.before_ms)
        case _:
            assert_never(event)
    return NOTHING


def _stream_read(state: State, event: StreamRead) -> Outcome:
    if event.reset:
        _forget(state, event.stream)
    bad: list[tuple[str, str]] = []
    latencies: list[tuple[str, float]] = []
    for record in event.records:
        try:
            found = _record(state, record)
        except msgspec.DecodeError as error:
            kind = (subjects.split(record.subject) or ["?"])[0]
            bad.append((kind, f"{record.subject}: seq {record.seq}: {error}"))
            continue
        if found is not None:
            latencies.append(found)
    first = event.stream not in state.caught_up
    if event.caught_up:
        state.caught_up.add(event.stream)
    # What was acknowledged before this process read it is not measured again.
    return Outcome(tuple(bad), () if first else tuple(latencies))


def _forget(state: State, stream: str) -> None:
    """The stream is new: its old contents are not believed; totals stay."""
    state.caught_up.discard(stream)
    tables = {
        subjects.FACTS_STREAM: (state.nodes, state.pods, state.switch_facts),
        subjects.INTENTS_STREAM: (
            state.switches, state.endpoints, state.routes, state.services, state.spreads,
            state.numbers,
            state.policies,
        ),
        subjects.STATE_STREAM: (state.applied,),
    }  # fmt: skip
    for table in tables.get(stream, ()):
        table.clear()


def _record(state: State, record: Record) -> tuple[str, float] | None:
    """Take one record in; returns (node, ms) for a new programming latency."""
    match subjects.split(record.subject):
        case ["fact", kind, namespace, name]:
            _fact(state, kind, namespace, name, record)
        case ["intent", scope, kind, key]:
            _intent(state, intent_id(scope, kind, key), record)
        case ["applied", node]:
            return _applied(state, node, record)
    return None


def _fact(state: State, kind: str, namespace: str, name: str, record: Record) -> None:
    if record.is_tombstone:
        match kind:
            case "node":
                state.nodes.pop(name, None)
            case "pod":
                state.pods.pop((namespace, name), None)
            case "switch":
                state.switch_facts.pop(name, None)
        _forget_node(state, name if kind in ("node", "switch") else "")
        return
    fact: Fact = wire.decode(record.data, AnyFact)  # type: ignore[arg-type]
    match fact:
        case NodeFact():
            state.nodes[fact.name] = fact
        case PodFact():
            state.pods[fact.namespace, fact.name] = Pod(
                fact.node, fact.ips, fact.ready, fact.host_network, fact.finished
            )
        case SwitchFact():
            state.switch_facts[fact.name] = fact


def _forget_node(state: State, node: str) -> None:
    if node and node not in state.node_names():
        state.meter.forget_switch(node)


def _intent(state: State, this: str, record: Record) -> None:
    if record.is_tombstone:
        _intent_gone(state, this)
        return
    intent: Intent = wire.decode(record.data, AnyIntent)  # type: ignore[arg-type]
    match intent:
        case SwitchIntent():
            state.switches[intent.scope] = intent
        case EndpointIntent():
            state.endpoints[intent.id] = intent
        case RouteIntent():
            state.routes[intent.key] = intent
        case ServicePortIntent():
            _service(state, intent)
        case PolicyIntent():
            state.policies[intent.id] = intent


def _intent_gone(state: State, this: str) -> None:
    scope, kind, key = this.split("/", 2)
    match kind:
        case "switch":
            state.switches.pop(scope, None)
            _forget_node(state, scope)
        case "endpoint":
            state.endpoints.pop(this, None)
        case "route":
            state.routes.pop(key, None)
        case "policy":
            state.policies.pop(this, None)
        case "service":
            gone = state.services.pop(this, None)
            _forget_numbers(state, gone)
            if gone is not None:
                state.spreads.pop(service_target(gone), None)


def _service(state: State, intent: ServicePortIntent) -> None:
    """Its spread is measured anew when its endpoints change."""
    _forget_numbers(state, state.services.get(intent.id))
    state.services[intent.id] = intent
    target = service_target(intent)
    for endpoint in intent.endpoints:
        number = f"{endpoint_number(intent.key, endpoint):016x}"
        state.numbers[number] = (*target, endpoint_text(endpoint.ip, endpoint.port))
    endpoints = frozenset(endpoint_text(e.ip, e.port) for e in intent.endpoints)
    spread = state.spreads.get(service_target(intent))
    if spread is None or spread.endpoints != endpoints:
        state.spreads[service_target(intent)] = Spread(endpoints)


def _forget_numbers(state: State, intent: ServicePortIntent | None) -> None:
    if intent is None:
        return
    for endpoint in intent.endpoints:
        state.numbers.pop(f"{endpoint_number(intent.key, endpoint):016x}", None)


def _applied(state: State, node: str, record: Record) -> tuple[str, float] | None:
    if record.is_tombstone:
        state.applied.pop(node, None)
        return None
    applied = wire.decode(record.data, Applied)
    old = state.applied.get(node)
    state.applied[node] = applied
    same = old is not None and (old.epoch, old.revision) == (applied.epoch, applied.revision)
    if applied.programming_ms is None or same:
        return None
    return node, applied.programming_ms


def _polled(state: State, event: Polled) -> None:
    node = event.counters.node
    grown = state.meter.account(node, samples_of(state, event.counters), event.now_ms)
    _spread(state, grown)


def _spread(state: State, grown: dict[Target, list[int]]) -> None:
    """
    New connections by endpoint, since the endpoints of their ServicePort changed.

    Also a first reading counts: OVS begins the counters of a group anew whenever it is modified.
    """
    for target, values in grown.items():
        if target[0] != "endpoint" or not values[0]:
            continue
        spread = state.spreads.get(target[:-1])
        endpoint = target[-1]
        if spread is not None and endpoint in spread.endpoints:
            spread.connections[endpoint] = spread.connections.get(endpoint, 0) + values[0]
