"""
Many Services, one change: what is done is counted, and does not grow with the number of Services.

From facts through the planner's own step and flowctl's own core to the bytes for one switch.
"""

import json
import sys
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import msgspec
import pytest

from dunlin import subjects, wire
from dunlin.events.facts import (
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSliceFact,
    NamespaceFact,
    NetworkPolicyFact,
    PodFact,
    ServiceFact,
    ServicePort,
)
from dunlin.events.intents import intent_id
from dunlin.openflow.flow import Flow, Group
from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from dunlin_flowctl.core.delta import ChangeSet, diff
from dunlin_flowctl.core.desired import Desired, IntentVersion
from dunlin_flowctl.core.switch import Moment
from dunlin_flowctl.encode import encode_step
from dunlin_planner.core import step as steps
from dunlin_planner.core.events import Deleted, Event, Upserted
from dunlin_planner.core.step import Changes, step
from dunlin_planner.state import State
from tests.unit.planner.build import CLUSTER, node, switch

ENDPOINTS = 10
NAMESPACE = Upserted(NamespaceFact(name="default", labels={}))
FEW, SOME, MANY = 50, 500, 10_000


def service_fact(number: int, port: int = 80) -> ServiceFact:
    """Service default/s<number>."""
    return ServiceFact(
        namespace="default",
        name=f"s{number}",
        cluster_ips=(ip_address("10.96.0.1") + number,),
        ports=(ServicePort(name="http", port=port),),
    )


def slice_fact(number: int, count: int = ENDPOINTS) -> EndpointSliceFact:
    """Its first `count` endpoints."""
    first = ip_address("198.18.0.0") + number * 16
    return EndpointSliceFact(
        namespace="default",
        name=f"s{number}-x",
        service=f"s{number}",
        ports=(EndpointPort(name="http", port=8080),),
        endpoints=tuple(Endpoint(ip=first + i, node="n2") for i in range(count)),
    )


class Pipeline:
    """Planner, flowctl's core, and the switch of n1 that holds all there is."""

    def __init__(self, services: int, nodes: int = 1) -> None:
        self.state = State(CLUSTER)
        self.desired = Desired(PipelineCompiler())
        self.revision = 0
        facts: list[Any] = []
        for number in range(1, nodes + 1):
            name = f"n{number}"
            facts += [node(name, number), switch(name, number, ovs_version="3.5.0")]
        for number in range(services):
            facts += [service_fact(number), slice_fact(number)]
        self._publish(step(self.state, [Upserted(fact) for fact in facts]))
        managed = self.desired.manage("n1")
        assert managed is not None
        self.switch = managed

    def _publish(self, changes: Changes) -> None:
        for subject, intent in changes.intents.items():
            self.revision += 1
            if intent is None:
                gone = intent_id(*subjects.split(subject)[1:])
                self.desired.delete(gone, Moment(self.revision))
            else:
                self.desired.upsert(IntentVersion(intent, self.revision))

    def change(self, event: Event) -> tuple[Changes, ChangeSet]:
        """One fact: intents to publish, and the messages to the switch."""
        changes = step(self.state, [event])
        self._publish(changes)
        work = self.switch.take(lambda intent_id: self.desired.get("n1", intent_id), 0.0)
        messages = diff(work.parts.values(), may_delete=True)
        self.switch.done(work)
        return changes, messages


def calls_of(act: Callable[[], object]) -> int:
    """How many Python functions are called."""
    count = 0

    def seen(_frame: object, event: str, _arg: object) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(seen)
    try:
        act()
    finally:
        sys.setprofile(None)
    return count


def octets(messages: ChangeSet) -> int:
    """On the wire to one switch."""
    return sum(len(encode_step(one)) for phase in messages.phases for one in phase)


@pytest.fixture(scope="module")
def few() -> Pipeline:
    """A small cluster."""
    return Pipeline(FEW)


@pytest.fixture(scope="module")
def many() -> Pipeline:
    """Two hundred times as many Services."""
    return Pipeline(MANY)


def test_one_endpoint_touches_one_group(many: Pipeline) -> None:
    """One intent is published, one group modified; flows only of the endpoint that came or went."""
    for count in (ENDPOINTS - 1, ENDPOINTS):
        changes, messages = many.change(Upserted(slice_fact(7, count)))
        (intent,) = changes.intents.values()
        assert intent is not None
        assert intent.id == "all/service/default/s7:http/TCP"
        ((command, group),) = [(one.command, one.content) for one in messages.groups_put]
        assert (command, isinstance(group, Group)) == ("modify", True)
        flows = [one.content for one in (*messages.flows_put, *messages.flows_deleted)]
        assert not messages.groups_deleted
        assert len(flows) <= 2, flows
        assert len({flow.cookie for flow in flows if isinstance(flow, Flow)}) <= 1


def test_a_service_does_not_send_others_again(many: Pipeline) -> None:
    """Another port of one Service: its intent and its flows, nobody else's."""
    changes, messages = many.change(Upserted(service_fact(9, port=81)))
    assert [i.id for i in changes.intents.values() if i] == ["all/service/default/s9:http/TCP"]
    assert {one.intent_id for phase in messages.phases for one in phase} == {
        "all/service/default/s9:http/TCP"
    }
    assert not messages.groups_put, "its endpoints are the same"
    many.change(Upserted(service_fact(9)))


def test_bytes_do_not_depend_on_the_number_of_services(few: Pipeline, many: Pipeline) -> None:
    """The same change is as large in a large cluster, on the bus and to a switch."""
    sizes = []
    for world in (few, many):
        changes, messages = world.change(Upserted(slice_fact(3, ENDPOINTS - 1)))
        published = sum(len(wire.encode(i)) for i in changes.intents.values() if i)
        sizes.append((len(changes.intents), published, len(messages), octets(messages)))
        world.change(Upserted(slice_fact(3)))
    assert sizes[0] == sizes[1]


@pytest.mark.parametrize("fact", [slice_fact(5, ENDPOINTS - 1), service_fact(5, port=81)])
def test_work_does_not_depend_on_the_number_of_services(
    few: Pipeline, many: Pipeline, fact: EndpointSliceFact | ServiceFact
) -> None:
    """Planner and flowctl call as many functions for it among 10,000 Services as among 50."""
    back = slice_fact(5) if isinstance(fact, EndpointSliceFact) else service_fact(5)
    counts = []
    for world in (few, many):
        counts.append(calls_of(lambda world=world: world.change(Upserted(fact))))  # type: ignore[misc]
        world.change(Upserted(back))
    assert counts[1] <= counts[0] * 1.1, counts


def test_a_switch_is_not_asked_about_every_service(few: Pipeline, many: Pipeline) -> None:
    """An Open vSwitch that cannot track SCTP concerns Services of SCTP, and no others."""
    counts = []
    for world in (few, many):
        fact = Upserted(switch("n7", 7, ovs_version="3.1.0"))
        counts.append(calls_of(lambda world=world, fact=fact: step(world.state, [fact])))  # type: ignore[misc]
    assert counts[1] <= counts[0] * 1.1, counts


@pytest.mark.parametrize("fact", [slice_fact(5, ENDPOINTS - 1), service_fact(5, port=81)])
def test_work_does_not_depend_on_the_number_of_nodes(
    few: Pipeline, fact: EndpointSliceFact | ServiceFact
) -> None:
    """A switch has a route for every node, and a change of a Service looks at none of them."""
    counts = []
    for world in (few, Pipeline(FEW, nodes=200)):
        back = slice_fact(5) if isinstance(fact, EndpointSliceFact) else service_fact(5)
        counts.append(calls_of(lambda world=world: world.change(Upserted(fact))))  # type: ignore[misc]
        world.change(Upserted(back))
    assert counts[1] <= counts[0] * 1.1, counts


def asking(number: int, host_port: int = 8080) -> PodFact:
    """Pod default/p<number>, the only one of its node that asks for this hostPort."""
    return PodFact(
        namespace="default",
        name=f"p{number}",
        node=f"n{number}",
        ips=(ip_address("198.18.0.0") + number,),
        ports=(ContainerPort(port=80, host_port=host_port),),
    )


def test_a_host_port_costs_what_it_is() -> None:
    """One Pod's, among 50 and among 2,000 of that number: calls, and its own intents alone."""
    counts = []
    for pods in (FEW, 2_000):
        world = Pipeline(0)
        step(world.state, [Upserted(asking(number)) for number in range(2, pods)])
        world.change(Upserted(asking(1)))
        changes, messages = world.change(Upserted(asking(1, 8081)))
        assert len(changes.intents) == 2, "one goes, one comes"
        assert {len(messages.flows_put), len(messages.flows_deleted)} == {2}, "two own addresses"
        back = Upserted(asking(1))
        counts.append(calls_of(lambda world=world, back=back: world.change(back)))  # type: ignore[misc]
    assert counts[1] <= counts[0] * 1.1, counts


def to_web(number: int) -> NetworkPolicyFact:
    """Egress of every Pod of its namespace, to the named port of Pods of one network."""
    to = [{"ipBlock": {"cidr": "198.18.0.0/16", "except": [f"198.18.200.{number}/32"]}}]
    rule = {"to": to, "ports": [{"port": "web"}]}
    spec = {"podSelector": {}, "policyTypes": ["Egress"], "egress": [rule]}
    body = msgspec.Raw(json.dumps(spec).encode())
    return NetworkPolicyFact(namespace="default", name=f"p{number}", spec=body)


def named(number: int) -> PodFact:
    """Pod default/p<number>; one of two numbers is its port `web`."""
    ports = (ContainerPort(name="web", port=80 + number % 2),)
    return msgspec.structs.replace(asking(number), ports=ports)


def test_a_named_port_in_a_network_costs_what_it_is() -> None:
    """A Pod that comes, goes or has another number, among 50 and among 2,000 of that name."""
    counts = []
    for pods in (FEW, 2_000):
        state = State(CLUSTER)
        facts: list[Any] = [NamespaceFact(name="default"), to_web(1), to_web(2)]
        facts += [named(number) for number in range(2, pods)]
        step(state, [Upserted(fact) for fact in facts])
        other = msgspec.structs.replace(named(1), ports=named(2).ports)
        events = (Upserted(named(1)), Upserted(other), Deleted("pod", "default", "p1"))
        counts.append(
            [
                calls_of(lambda state=state, event=event: step(state, [event]))  # type: ignore[misc]
                for event in events
            ]
        )
    assert all(many <= few * 1.1 for few, many in zip(*counts, strict=True)), counts


def labelled(number: int, app: str) -> PodFact:
    """Pod default/<app>-<number>, one of its ReplicaSet."""
    return PodFact(
        namespace="default",
        name=f"{app}-{number}",
        node="n1",
        ips=(ip_address("198.18.0.0") + number,),
        labels={"app": app, "pod-template-hash": f"{app}-1"},
    )


def test_a_new_policy_does_not_look_at_every_pod() -> None:
    """Its namespace has 50 or 2,000 other Pods, of five ReplicaSets: as many calls."""
    spec = msgspec.json.encode({
        "podSelector": {"matchLabels": {"app": "db"}},
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"app": "a1"}}}]}],
        "egress": [{"to": [{"podSelector": {"matchLabels": {"app": "nobody"}}}]}],
        "policyTypes": ["Ingress", "Egress"],
    })  # fmt: skip
    policy = NetworkPolicyFact(namespace="default", name="db", spec=msgspec.Raw(spec))
    counts = []
    for others in (FEW, 2_000):
        state = State(CLUSTER)
        pods = [labelled(number, f"a{2 + number % 5}") for number in range(others)]
        pods += [labelled(others + number, app) for app in ("db", "a1") for number in range(3)]
        step(state, [NAMESPACE, *(Upserted(pod) for pod in pods)])
        counts.append(calls_of(lambda state=state: step(state, [Upserted(policy)])))  # type: ignore[misc]
        assert sorted(map(len, state.policy.groups.members.values())) == [0, 3, 3]
    assert counts[1] <= counts[0] * 1.1, counts


def test_nothing_changes_nothing(many: Pipeline) -> None:
    """The same fact again, or one that differs in what no switch needs, is not published."""
    again = slice_fact(11)
    named = msgspec.structs.replace(again, ports=(*again.ports, EndpointPort(name="x", port=1)))
    for fact in (again, named, again):
        changes, messages = many.change(Upserted(fact))
        assert not changes.intents
        assert not len(messages)


def test_the_count_can_fail(few: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that plans everything anew for each change is noticed."""
    plan = steps.plan
    counts = []
    for world in (few, Pipeline(SOME)):

        def everything(state: State, unit: Any) -> Any:
            for other in state.units():
                plan(state, other)
            return plan(state, unit)

        monkeypatch.setattr(steps, "plan", everything)
        fact = Upserted(slice_fact(5, ENDPOINTS - 1))
        counts.append(calls_of(lambda world=world, fact=fact: world.change(fact)))  # type: ignore[misc]
        monkeypatch.setattr(steps, "plan", plan)
        world.change(Upserted(slice_fact(5)))
    assert counts[1] > counts[0] * 1.1
