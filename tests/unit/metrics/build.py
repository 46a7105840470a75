"""A small cluster for the metrics service: two nodes, three Pods, a Service; and its counters."""

from ipaddress import ip_address
from typing import Any

from dunlin import subjects, wire
from dunlin.bus.base import Record
from dunlin.events.facts import Fact, NodeFact, PodFact, SwitchFact
from dunlin.events.intents import Intent, ServiceEndpoint, ServicePortIntent
from dunlin.events.state import Applied
from dunlin.model.addresses import MacAddress
from dunlin.pipeline.traffic import endpoint_number
from dunlin_metrics.core import step
from dunlin_metrics.counters import Bandwidth, Bucket, Counters, Flow, Group, Port, Traffic
from dunlin_metrics.events import Outcome, Polled, StreamRead
from dunlin_metrics.state import State
from tests.fixtures import cluster

PODS = {"p11": "n1", "p12": "n1", "p21": "n2"}
SERVICE = "all/service/default/web:http/TCP"


def record(message: Fact | Intent | Applied, seq: int = 1) -> Record:
    """As it stands in its stream."""
    return Record(message.subject, wire.encode(message), seq, 0)


def read(
    state: State, stream: str, *messages: Fact | Intent | Applied, reset: bool = False
) -> Outcome:
    """Let the service read messages of one stream, up to its end."""
    records = tuple(record(message) for message in messages)
    return step(state, StreamRead(stream, records, reset=reset, caught_up=True))


def facts() -> list[Fact]:
    """Nodes, switches and Pods."""
    found: list[Fact] = []
    for number in (1, 2):
        name = f"n{number}"
        found.append(NodeFact(name=name, ips=(ip_address(f"172.31.0.{number}"),), ready=True))
        found.append(
            SwitchFact(
                name=name,
                dpid=number,
                router_mac=MacAddress("02:00:00:00:00:01"),
                uplink_mac=MacAddress("02:00:00:00:00:02"),
                gateway_port=1,
                tunnel_type="geneve",
                ovs_version="3.1.0",
            )
        )
    for pod, node in PODS.items():
        found.append(PodFact(namespace="default", name=pod, node=node, ready=True))
    found.append(PodFact(namespace="default", name="waiting", node="n1"))
    found.append(PodFact(namespace="kube-system", name="host", node="n1", host_network=True))
    return found


def web(*endpoints: str) -> ServicePortIntent:
    """The Service `web` with endpoints `address:port`."""
    made = []
    for number, text in enumerate(endpoints):
        host, _colon, port = text.rpartition(":")
        target = f"default/{list(PODS)[number]}" if number < len(PODS) else ""
        made.append(ServiceEndpoint(ip=ip_address(host.strip("[]")), port=int(port), target=target))
    return ServicePortIntent(
        scope="all",
        key="default/web:http/TCP",
        object="service/default/web",
        service_namespace="default",
        service_name="web",
        port_name="http",
        protocol=cluster.service().protocol,
        port=80,
        addresses=cluster.service().addresses,
        endpoints=tuple(made),
    )


def intents(*, tunnel: bool = False) -> list[Intent]:
    """Everything of both nodes."""
    return [
        cluster.switch(1, tunnel=tunnel),
        cluster.switch(2, tunnel=tunnel),
        cluster.pod(1, 1),
        cluster.pod(1, 2),
        cluster.pod(2, 1),
        cluster.route(1, encapsulation="tunnel" if tunnel else "auto"),
        cluster.route(2, encapsulation="tunnel" if tunnel else "auto"),
        web("10.0.1.11:8080", "10.0.1.12:8080"),
    ]


def applied(node: str, revision: int = 1, **values: Any) -> Applied:
    """An acknowledgement."""
    fields: dict[str, Any] = {"dpid": 1, "epoch": "e", "connected": True, "flows": 100, "groups": 2}
    return Applied(node=node, revision=revision, **(fields | values))


def started(*, tunnel: bool = False) -> State:
    """A state that has read everything."""
    state = State()
    read(state, subjects.FACTS_STREAM, *facts())
    read(state, subjects.INTENTS_STREAM, *intents(tunnel=tunnel))
    read(state, subjects.STATE_STREAM, applied("n1"), applied("n2", connected=False))
    return state


def port(pod: str, node: str = "n1", received: int = 0, sent: int = 0) -> Port:
    """A Pod's port; `received` and `sent` are packets of 100 bytes from the Pod's view."""
    return Port(
        port=11,
        name=f"veth-{pod}",
        intent=f"{node}/endpoint/default/{pod}/eth0",
        tx_packets=received,
        tx_bytes=received * 100,
        tx_dropped=1,
        rx_packets=sent,
        rx_bytes=sent * 100,
        rx_dropped=2,
    )


def flow(destination: str, packets: int, match: str = "a") -> Flow:
    """A flow of a route."""
    return Flow(f"all/route/{destination}", 60, match, packets, packets * 100)


def group(*buckets: tuple[str, int], intent: str = SERVICE) -> Group:
    """The Service's group: (endpoint, packets) of each bucket."""
    made = (Bucket(i, packets, packets * 60, where) for i, (where, packets) in enumerate(buckets))
    return Group(1 << 16, intent, tuple(made))


def traffic(endpoint: ServiceEndpoint, packets: int) -> Traffic:
    """The counter of one of the Service's endpoints; packets of 100 bytes."""
    number = endpoint_number(SERVICE.split("/", 2)[2], endpoint)
    return Traffic(f"{number:016x}", packets, packets * 100)


def poll(
    state: State, now_ms: int, *parts: Port | Flow | Group | Traffic | Bandwidth, node: str = "n1"
) -> None:
    """One reading of a switch."""
    counters = Counters(
        node,
        flows=tuple(part for part in parts if isinstance(part, Flow)),
        ports=tuple(part for part in parts if isinstance(part, Port)),
        groups=tuple(part for part in parts if isinstance(part, Group)),
        services=tuple(part for part in parts if isinstance(part, Traffic)),
        bandwidth=tuple(part for part in parts if isinstance(part, Bandwidth)),
    )
    step(state, Polled(counters, now_ms))
