"""hostPorts of Pods: what their node is told, who has one that two ask for, and what is said."""

from ipaddress import ip_address
from typing import Any

import pytest

from dunlin.events.facts import AttachmentFact, ContainerPort, Meta, PodFact, Protocol, ServicePort
from dunlin.events.intents import HostPortIntent
from dunlin.model.addresses import MacAddress
from dunlin_planner.core.events import Deleted, Event, Upserted
from dunlin_planner.core.step import findings, intents, step
from dunlin_planner.shell import unit_of
from dunlin_planner.state import State, shard_of
from tests.unit.planner.build import CLUSTER, node, service, switch

POD_IP, POD_IP6 = "10.244.1.11", "fd00:10:244:1::11"


def wish(port: int = 8080, ip: str = "", protocol: Protocol = Protocol.TCP) -> ContainerPort:
    """A port 80 of a container, at this hostPort."""
    host_ip = ip_address(ip) if ip else None
    return ContainerPort(port=80, host_port=port, host_ip=host_ip, protocol=protocol)


def pod(name: str = "a", *ports: ContainerPort, **more: Any) -> PodFact:
    """Pod default/<name> of n1 with an address of each family."""
    values: dict[str, Any] = {
        "namespace": "default",
        "name": name,
        "node": "n1",
        "ips": (ip_address(POD_IP), ip_address(POD_IP6)),
        "ports": ports or (wish(),),
    }
    return PodFact(**(values | more))


def attachment(name: str = "a", ip: str = "10.244.1.99", **more: Any) -> AttachmentFact:
    """What n1's agent says of it."""
    return AttachmentFact(
        namespace="n1",
        name=f"c-{name}/eth0",
        pod_namespace="default",
        pod_name=name,
        container_id=f"c-{name}",
        ips=(ip_address(ip),),
        mac=MacAddress("02:00:00:00:00:09"),
        ofport=9,
        port_name="v",
        **more,
    )


def state_of(*events: Any) -> State:
    """The planner after these facts, with n1 there."""
    state = State(CLUSTER)
    told: list[Event] = [Upserted(node("n1")), Upserted(switch("n1", ovs_version="3.3.0"))]
    told += [e if isinstance(e, Deleted) else Upserted(e) for e in events]
    step(state, told)
    return state


def asked(state: State) -> dict[str, tuple[str, ...]]:
    """Keys of the intents, and the endpoints of each."""
    found = (i for i in intents(state).values() if isinstance(i, HostPortIntent))
    return {i.key: tuple(f"{e.ip} {e.port}" for e in i.endpoints) for i in found}


def said(state: State) -> list[tuple[str, str, str, str]]:
    """Findings of Pods."""
    return [(f.object, f.field, f.severity, f.reason) for f in findings(state) if f.kind == "Pod"]


BOTH = (f"{POD_IP} 80", f"{POD_IP6} 80")


@pytest.mark.parametrize(
    ("port", "key", "endpoints"),
    [
        (wish(), "default/a:8080/TCP", BOTH),
        (wish(protocol=Protocol.UDP), "default/a:8080/UDP", BOTH),
        (wish(ip="0.0.0.0"), "default/a:8080@0.0.0.0/TCP", BOTH[:1]),
        (wish(ip="::"), "default/a:8080@::/TCP", BOTH[1:]),
        (wish(ip="192.0.2.1"), "default/a:8080@192.0.2.1/TCP", BOTH[:1]),
        (wish(ip="2001:db8::1"), "default/a:8080@2001:db8::1/TCP", BOTH[1:]),
    ],
)
def test_what_the_node_is_told(port: ContainerPort, key: str, endpoints: tuple[str, ...]) -> None:
    """One intent a hostPort, for its node alone; its key leads back to the Pod's unit and shard."""
    state = state_of(pod("a", port))
    assert asked(state) == {key: endpoints}
    (intent,) = (i for i in intents(state).values() if isinstance(i, HostPortIntent))
    assert (intent.scope, intent.object) == ("n1", "pod/default/a")
    unit = unit_of(intent.subject)
    assert intent in state.planned[unit].intents
    assert said(state) == []
    assert shard_of(unit) in state.shards


def test_the_nodes_word_comes_before_the_status() -> None:
    """CNI ADD waits for it, and status.podIPs comes only afterwards; an earlier Pod's is not it."""
    waiting = pod(ips=(), meta=Meta(uid="new"))
    assert asked(state_of(waiting)) == {}
    attached = attachment(pod_uid="new")
    assert asked(state_of(waiting, attached)) == {"default/a:8080/TCP": ("10.244.1.99 80",)}
    assert asked(state_of(attached, waiting)) == {"default/a:8080/TCP": ("10.244.1.99 80",)}
    assert asked(state_of(waiting, attachment(pod_uid="old"))) == {}


@pytest.mark.parametrize("more", [{"finished": True}, {"host_network": True}, {"node": ""}])
def test_who_has_none(more: dict[str, Any]) -> None:
    """Finished, on host network, on no node."""
    assert asked(state_of(pod(), pod(**more))) == {}


def test_a_pod_that_goes() -> None:
    """Terminating it serves to the end, as its containers run; then its hostPort goes with it."""
    assert asked(state_of(pod(terminating=True))) == {"default/a:8080/TCP": BOTH}
    assert asked(state_of(pod(), Deleted("pod", "default", "a"))) == {}
    moved = pod(ports=(wish(9090),), ips=(ip_address(POD_IP),))
    assert asked(state_of(pod(), moved)) == {"default/a:9090/TCP": BOTH[:1]}


CLASH = "port 8080/TCP of node n1 belongs to Pod default/{}, which is older: left out here"


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        ("", "", True),
        ("", "192.0.2.1", True),
        ("0.0.0.0", "192.0.2.1", True),
        ("0.0.0.0", "", True),
        ("0.0.0.0", "::", False),
        ("0.0.0.0", "2001:db8::1", False),
        ("192.0.2.1", "10.244.1.1", False),
        ("192.0.2.1", "192.0.2.1", True),
    ],
)
def test_two_pods_that_ask_for_one(one: str, other: str, clash: bool) -> None:
    """The older has it, in whatever order they are told; the other is named, and gets it later."""
    old = pod("z", wish(ip=one), created_ms=1)
    new = pod("b", wish(ip=other), created_ms=2)
    for facts in ((old, new), (new, old)):
        state = state_of(*facts)
        expected = [("Pod default/b", FIELD, "conflict", CLASH.format("z"))] if clash else []
        assert said(state) == expected
        assert len(asked(state)) == 2 - clash
        assert any(key.startswith("default/z:") for key in asked(state))
    step(state, [Deleted("pod", "default", "z")])
    assert said(state) == []
    assert [key[:10] for key in asked(state)] == ["default/b:"]


FIELD, FIELD_IP = "spec.containers[].ports[].hostPort", "spec.containers[].ports[].hostIP"


def test_other_nodes_and_protocols_do_not_clash() -> None:
    """Nor does the very same port twice in one Pod."""
    twice = pod("a", wish(), wish(), wish(protocol=Protocol.UDP), wish(8081))
    state = state_of(twice, pod("b", node="n2"))
    assert said(state) == []
    assert len(asked(state)) == 4


def test_a_pod_that_clashes_with_itself() -> None:
    """Two containers at one address: the first by their order."""
    other = ContainerPort(port=81, host_port=8080, host_ip=ip_address("192.0.2.1"))
    state = state_of(pod("a", wish(), other))
    assert asked(state) == {"default/a:8080/TCP": BOTH}
    assert said(state) == [("Pod default/a", FIELD, "conflict", CLASH.format("a"))]


@pytest.mark.parametrize(
    ("ip", "severity", "reason"),
    [
        ("192.0.2.77", "invalid", "192.0.2.77 is no address of node n1"),
        (
            "127.0.0.1",
            "unsupported",
            "127.0.0.1: a node serves hostPorts at its own addresses, not at its loopback",
        ),
    ],
)
def test_an_address_that_is_not_served(ip: str, severity: str, reason: str) -> None:
    """Said by name, until the node has it."""
    state = state_of(pod("a", wish(ip=ip)))
    assert (asked(state), said(state)) == ({}, [("Pod default/a", FIELD_IP, severity, reason)])


def test_the_node_gets_that_address() -> None:
    """A new address in its switch fact is enough."""
    state = state_of(pod("a", wish(ip="192.0.2.7")))
    step(state, [Upserted(switch("n1", 7, ovs_version="3.3.0"))])
    assert (len(asked(state)), said(state)) == (1, [])


def test_a_node_port_comes_first() -> None:
    """And is named; the hostPort is told to the switch all the same, below it."""
    web = service(ports=(ServicePort(name="http", port=80, node_port=8080),))
    reason = "port 8080/TCP is the node port of Service default/web, which comes first"
    for facts in ((web, pod()), (pod(), web)):
        state = state_of(*facts)
        assert said(state) == [("Pod default/a", FIELD, "conflict", reason)]
        assert asked(state) == {"default/a:8080/TCP": BOTH}
    step(state, [Deleted("service", "default", "web")])
    assert said(state) == []


def test_sctp_on_an_old_switch() -> None:
    """Refused by the switch, and said."""
    state = state_of(pod("a", wish(protocol=Protocol.SCTP)))
    assert said(state) == []
    step(state, [Upserted(switch("n1", ovs_version="3.1.0"))])
    ((_, field, severity, reason),) = said(state)
    assert (field, severity) == ("spec.containers[].ports[].protocol", "unsupported")
    assert "n1" in reason
