"""`explain` on compiled flows: Services, nodes, tunnels, fences, what is in force."""

from __future__ import annotations

from ipaddress import ip_address

import msgspec
import pytest

from dunlin.events.intents import AnyIntent, EndpointIntent, PolicySubjectIntent, ServiceEndpoint
from dunlin.explain.answer import Answer, Path
from dunlin.explain.policy import explain
from dunlin.explain.question import BadQuestion, parse
from dunlin.explain.walk import ENDPOINTS_MAX
from dunlin.explain.world import Version, World
from tests.fixtures import cluster

PODS = [cluster.pod(node, number) for node in (1, 2) for number in (1, 2)]


def subject(pod: EndpointIntent) -> PolicySubjectIntent:
    """No policy selects it: its fence is lifted."""
    key = f"{pod.pod_namespace}/{pod.pod_name}"
    return PolicySubjectIntent(scope=pod.scope, key=key, ips=pod.ips)


def world(
    *more: AnyIntent, tunnel: bool = False, fenced: str = "", held: dict[str, int] | None = None
) -> World:
    """Two nodes with two Pods each, the Services of the fixture, revision 5 each."""
    encapsulation = {"encapsulation": "tunnel"} if tunnel else {}
    wanted: list[AnyIntent] = [cluster.switch(n, tunnel=tunnel) for n in (1, 2)]
    wanted += [cluster.route(n, **encapsulation) for n in (1, 2)]
    wanted += [*PODS, *(subject(pod) for pod in PODS if pod.pod_name != fenced)]
    wanted += [cluster.service(2), cluster.service(0, name="empty", number=2)]
    wanted += [*cluster.every_service(), *more]
    return World((Version(intent, 5) for intent in wanted), held)


def ask(found: World, source: str, destination: str, port: str = "80") -> Answer:
    """As the command line."""
    return explain(found, parse(source, destination, port))


def ends(answer: Answer) -> dict[str, tuple[str, str]]:
    """Destination address -> (verdict, reason)."""
    return {path.destination.ip: (path.verdict, path.reason) for path in answer.paths}


@pytest.mark.parametrize("tunnel", [False, True])
def test_pods_of_two_nodes(tunnel: bool) -> None:
    """Each end is judged on its own node, on an underlay and through a tunnel."""
    answer = ask(world(tunnel=tunnel), "default/p11", "default/p22")
    assert answer.verdict == "ALLOWED"
    assert [path.destination.ip for path in answer.paths] == ["10.0.2.12", "fd00:2::12"]
    for path in answer.paths:
        assert [(j.direction, j.node) for j in path.judgements] == [
            ("egress", "n1"), ("ingress", "n2")
        ]  # fmt: skip


def test_every_endpoint_of_a_service() -> None:
    """After load balancing; by its name or by its address; a Pod and itself are not judged."""
    found = world()
    by_name = ask(found, "default/p21", "svc/default/web", "http")
    assert ends(by_name).keys() == {"10.0.1.11", "10.0.1.12", "fd00:1::11", "fd00:1::12"}
    assert {path.port for path in by_name.paths} == {8080}
    by_address = ask(found, "default/p21", "10.96.0.1")
    assert [p for p in by_name.paths if "." in p.source.ip] == list(by_address.paths)
    itself = ask(found, "default/p11", "10.96.0.1")
    (path,) = (p for p in itself.paths if p.destination.ip == "10.0.1.11")
    assert (path.verdict, path.reason) == ("ALLOWED", "a Pod and itself are not judged")


def test_without_endpoints_and_without_pods() -> None:
    """No policy is against it, and still it does not arrive: that is said, and where."""
    refused = ask(world(), "default/p11", "svc/default/empty")
    assert refused.verdict == "UNREACHABLE"
    assert "refused in ServiceLB" in refused.paths[0].reason
    nobody = msgspec.structs.replace(
        cluster.service(1, name="gone", number=7),
        endpoints=(ServiceEndpoint(ip=ip_address("10.0.1.99"), port=80),),
    )
    (path,) = (
        p for p in ask(world(nobody), "default/p21", "10.96.0.7").paths if "." in p.source.ip
    )
    assert (path.verdict, path.destination.kind) == ("UNREACHABLE", "address")
    assert "dropped in Beyond" in path.reason


def test_what_a_node_has_of_its_own() -> None:
    """Node hints and zones decide which endpoints there are, as on the switch."""
    assert ends(ask(world(), "default/p11", "10.96.0.9")).keys() == {"10.0.1.11"}
    assert len(ends(ask(world(), "default/p21", "10.96.0.9"))) == 4


def test_node_ports_and_nodes() -> None:
    """A node's address and NodePort lead to endpoints; a node and its own Pod always pass."""
    answer = ask(world(), "default/p21", "172.31.0.2", "30080")
    assert {path.destination.name for path in answer.paths} >= {"default/p11"}
    own: Path = ask(world(), "10.0.1.1", "default/p11").paths[0]
    assert own.judgements[-1].why == "own node"
    assert own.source.kind == "node"


def test_fenced() -> None:
    """A Pod whose policies are not known yet reaches nobody and is not reached."""
    found = world(fenced="p12")
    out, back = (
        ask(found, *pair)
        for pair in (("default/p12", "default/p21"), ("default/p21", "default/p12"))
    )
    for answer, direction in ((out, "egress"), (back, "ingress")):
        assert answer.verdict == "DENIED"
        assert answer.paths[0].judgements[-1].why == "fenced"
        assert answer.paths[0].reason.startswith(f"{direction}: the Pod is fenced")


def test_in_force() -> None:
    """A switch that holds less than what is told is named as such."""
    behind = ask(world(held={"n1": 5, "n2": 4}), "default/p11", "default/p21").paths[0]
    assert [(j.node, j.in_force) for j in behind.judgements] == [("n1", True), ("n2", False)]


def test_too_many_endpoints() -> None:
    """A large Service is cut, and says so."""
    large = msgspec.structs.replace(
        cluster.service(0, name="large", number=8),
        endpoints=tuple(
            ServiceEndpoint(ip=ip_address(f"10.0.2.{n}"), port=80) for n in range(3, 3 + 200)
        ),
    )
    answer = ask(world(large), "default/p11", "10.96.0.8")
    assert not answer.complete
    assert 1 < len(answer.paths) <= ENDPOINTS_MAX


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("default/nobody", "default/p11", "80"), "no Pod default/nobody"),
        (("default/p11", "svc/default/nothing", "80"), "no Service default/nothing"),
        (("default/p11", "svc/default/web", "81"), "no port 81/TCP; it has 80/TCP"),
        (("default/p11", "svc/default/web", "80/UDP"), "no port 80/UDP"),
        (("10.0.1.11", "fd00:2::11", "80"), "no address of the same family"),
        (("192.0.2.1", "192.0.2.2", "80"), "neither is a Pod or a node"),
    ],
)
def test_questions_without_an_answer(words: tuple[str, str, str], said: str) -> None:
    """Each says what is wrong."""
    with pytest.raises(BadQuestion, match=said):
        ask(world(), *words)
