"""Small intents and programs by hand, and Hypothesis strategies over them."""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from hypothesis import strategies as st

from dunlin.events.facts import Protocol
from dunlin.events.intents import (
    AnyIntent,
    EndpointIntent,
    RouteIntent,
    ServiceEndpoint,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin.model.addresses import MacAddress
from dunlin.openflow.cookie import cookie_of
from dunlin.openflow.flow import Bucket, Flow, Group, Output, Program, ToGroup, match, set_field
from dunlin.service.intent_writer import digest_of
from dunlin_flowctl.core.desired import IntentVersion

MAC = MacAddress("02:00:00:00:00:01")
NODES = ("n1", "n2")
DPIDS = {"n1": 0x11, "n2": 0x12}


def switch_intent(node: str, *, gateway_port: int = 1) -> SwitchIntent:
    """The switch of a node."""
    return SwitchIntent(
        scope=node,
        key="pipeline",
        dpid=DPIDS[node],
        router_mac=MAC,
        gateway_port=gateway_port,
    )


def endpoint_intent(node: str, pod: str, ofport: int, *, ip: str = "10.0.0.2") -> EndpointIntent:
    """A Pod's interface."""
    return EndpointIntent(
        scope=node,
        key=f"default/{pod}/eth0",
        object=f"pod/default/{pod}",
        pod_namespace="default",
        pod_name=pod,
        ofport=ofport,
        mac=MAC,
        ips=(ip_address(ip),),
    )


def route_intent(node: str, hop: int) -> RouteIntent:
    """The route to a node; its program depends on the switch that it is compiled for."""
    return RouteIntent(
        scope="all",
        key=node,
        object=f"node/{node}",
        cidrs=(),
        addresses=(),
        router_mac=MacAddress(f"02:00:00:00:01:{hop:02x}"),
    )


def service_intent(
    name: str, ports: tuple[int, ...], *, port: int = 80, trigger_ms: int | None = None
) -> ServicePortIntent:
    """A Service whose endpoints are told apart by their ports."""
    return ServicePortIntent(
        scope="all",
        key=f"default/{name}:/TCP",
        object=f"service/default/{name}",
        trigger_ms=trigger_ms,
        service_namespace="default",
        service_name=name,
        protocol=Protocol.TCP,
        port=port,
        addresses=(),
        endpoints=tuple(ServiceEndpoint(ip=ip_address("10.0.0.9"), port=p) for p in ports),
    )


@dataclass(frozen=True)
class FakeCompiler:
    """
    A pipeline of three tables. Two services with one `port`, two Pods with one `ofport`, collide.

    A service with an endpoint port of 666 does not compile, one with 667 is refused by the switch
    (its flow names a group that nobody makes), one with 668 cannot be encoded.
    """

    version = b"fake"

    def digest(self, intent: AnyIntent) -> bytes:
        """Of all of it."""
        return digest_of(intent)

    def is_shared(self, intent: AnyIntent) -> bool:
        """Services are."""
        return isinstance(intent, ServicePortIntent)

    def context(self, intent: SwitchIntent) -> SwitchIntent:
        """The switch intent itself."""
        return intent

    def both(self, old: AnyIntent | None, new: AnyIntent | None, context: Any) -> Program:
        """There are no policies here."""
        raise NotImplementedError(old, new, context)

    def compile(self, intent: AnyIntent, context: Any) -> Program:
        """A few flows of each kind."""
        cookie = cookie_of(intent.id)
        match intent:
            case SwitchIntent():
                return Program((Flow(0, 0, (), goto=1, cookie=cookie),))
            case EndpointIntent():
                to_port = (Output(intent.ofport),)
                when = match(in_port=intent.ofport)
                where = match(eth_type=0x0800, nw_dst=intent.ips[0])
                return Program(
                    (
                        Flow(1, 10, when, goto=2, cookie=cookie),
                        Flow(2, 10, where, to_port, None, cookie),
                    )
                )
            case RouteIntent():
                if intent.key == context.scope:
                    return Program()
                octet = int(intent.router_mac[-2:], 16)
                when = match(eth_type=0x0800, nw_dst=(0x0A000000 | octet << 8, 0xFFFFFF00))
                rewrite = (set_field("eth_dst", intent.router_mac), Output(context.gateway_port))
                return Program((Flow(2, 5, when, rewrite, None, cookie),))
            case ServicePortIntent():
                return _service(intent, cookie)
        raise AssertionError(intent)


def _service(intent: ServicePortIntent, cookie: int) -> Program:
    ports = [endpoint.port for endpoint in intent.endpoints]
    if 666 in ports:
        raise ValueError("endpoints[0].port: 666")
    flows = [
        Flow(2, 20, match(eth_type=0x0800, nw_proto=6, tcp_dst=port), (Output(port),), None, cookie)
        for port in ports
    ]
    if 667 in ports:
        flows.append(Flow(2, 21, match(in_port=intent.port), (ToGroup(0xDEAD00),), None, cookie))
    if 668 in ports:
        flows.append(Flow(2, 1 << 20, match(in_port=intent.port), cookie=cookie))
    when = match(eth_type=0x0800, nw_proto=6, tcp_dst=intent.port)
    if not ports:
        return Program((Flow(1, 20, when, cookie=cookie),))
    buckets = tuple(Bucket(i, (Output(port),)) for i, port in enumerate(ports))
    group = Group(intent.port << 8, buckets=buckets, selection_method="hash")
    lookup = Flow(1, 20, when, (ToGroup(group.group_id),), None, cookie)
    return Program((lookup, *flows), (group,))


def intents() -> st.SearchStrategy[AnyIntent]:
    """Few names and few values, so that collisions and repetitions are common."""
    nodes = st.sampled_from(NODES)
    ports = st.lists(st.sampled_from([1, 2, 3, 666]), max_size=3, unique=True).map(tuple)
    return st.one_of(
        st.builds(switch_intent, nodes, gateway_port=st.integers(1, 2)),
        st.builds(
            endpoint_intent,
            nodes,
            st.sampled_from("abc"),
            st.integers(4, 6),
            ip=st.sampled_from(["10.0.0.2", "10.0.0.3"]),
        ),
        st.builds(route_intent, nodes, st.integers(1, 2)),
        st.builds(service_intent, st.sampled_from("xyz"), ports, port=st.integers(80, 82)),
    )


@dataclass(frozen=True)
class Change:
    """One message of the intent stream."""

    intent: AnyIntent
    gone: bool


def histories(max_size: int = 30) -> st.SearchStrategy[list[Change]]:
    """What may be published, in order."""
    return st.lists(st.builds(Change, intents(), st.booleans()), max_size=max_size)


def version(intent: AnyIntent, revision: int) -> IntentVersion:
    """A version published at that second of 1970."""
    return IntentVersion(intent, revision, published_ms=revision * 1000)
