"""
A small cluster for packets: facts -> planner -> compiled flows of one node -> the tracer.

Nodes n1 (zone za), n2 (za), n3 (zb), each with two Pods: `10.244.<n>.1<i>`. The switch of n1 is
looked at.
"""

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from dunlin.events.facts import (
    AnyFact,
    Endpoint,
    EndpointPort,
    EndpointSliceFact,
    Protocol,
    ServiceFact,
    ServicePort,
)
from dunlin.events.intents import (
    AnyIntent,
    EndpointIntent,
    PolicyGenerationIntent,
    PolicySubjectIntent,
    SwitchIntent,
)
from dunlin.model.addresses import MacAddress
from dunlin.openflow.conntrack import Conntrack
from dunlin.openflow.flow import OFPP_CONTROLLER, Flow, MatchValue, Program
from dunlin.openflow.packet import packet
from dunlin.openflow.trace import Trace, Tracer
from dunlin.pipeline import compile_intent, switch_context
from dunlin.pipeline.families import PROTOCOL_NUMBERS
from dunlin.pipeline.layout import EXTERNAL_PKT_MARK, REJECT_USERDATA
from dunlin_planner.core.events import Upserted
from dunlin_planner.core.step import intents, step
from dunlin_planner.state import State
from tests.unit.planner.build import CLUSTER, node, switch

GATEWAY, UPLINK = 1, 2
NODE_IP, NODE_IP6 = "192.0.2.1", "2001:db8::1"
CLUSTER_IP = "10.96.0.10"
CLIENT, CLIENT6 = "203.0.113.9", "2001:db8:ffff::9"
ZONES = {1: "za", 2: "za", 3: "zb"}
DROP, REJECT, NODE = "DROP", "REJECT", "to the node"


def pod_ip(number: int, pod: int, version: int = 4) -> str:
    """Address of Pod `pod` (1 or 2) of node `number`."""
    return f"10.244.{number}.1{pod}" if version == 4 else f"fd00:10:244:{number}::1{pod}"


def pod_mac(pod: int) -> MacAddress:
    """MAC of a Pod of node n1."""
    return MacAddress(f"0a:00:00:00:01:0{pod}")


def at(number: int, pod: int, state: str = "ready", version: int = 4, **more: Any) -> Endpoint:
    """That Pod as an endpoint; `state` as in tests.unit.planner.build.endpoint."""
    return Endpoint(
        ip=ip_address(pod_ip(number, pod, version)),
        ready=state == "ready",
        serving=state in ("ready", "serving"),
        terminating=state in ("serving", "terminating"),
        node=f"n{number}",
        zone=ZONES[number],
        target=f"default/p{number}{pod}",
        **more,
    )


def service(*ips: str, protocol: Protocol = Protocol.TCP, **changes: Any) -> ServiceFact:
    """Service default/web: port 80, node port 30080."""
    values: dict[str, Any] = {
        "namespace": "default",
        "name": "web",
        "cluster_ips": tuple(map(ip_address, ips or ("10.96.0.10",))),
        "ports": (ServicePort(name="http", protocol=protocol, port=80, node_port=30080),),
    }
    return ServiceFact(**(values | changes))


def endpoints(
    *found: Endpoint, protocol: Protocol = Protocol.TCP, name: str = "web-1"
) -> EndpointSliceFact:
    """An EndpointSlice of default/web: port 8080."""
    return EndpointSliceFact(
        namespace="default",
        name=name,
        service="web",
        ports=(EndpointPort(name="http", protocol=protocol, port=8080),),
        endpoints=found,
    )


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of a connection: where it may go and whether its source stays what it was."""

    endpoints: frozenset[str]
    translated: bool = False


def to(*pods: tuple[int, int] | str, translated: bool = False, version: int = 4) -> Answer:
    """These Pods, port 8080, or `address:port`s."""
    names = (p if isinstance(p, str) else f"{pod_ip(*p, version)}:8080" for p in pods)
    return Answer(frozenset(names), translated)


Verdict = Answer | str


@dataclass
class World:
    """The switch of node n1 as it should be for some facts."""

    tracer: Tracer
    conntrack: Conntrack = field(default_factory=Conntrack)
    learned: tuple[Flow, ...] = ()

    @classmethod
    def of(
        cls,
        *facts: AnyFact,
        ovs_version: str = "3.3.0",
        tunnel: bool = False,
        generation: int = 0,
    ) -> "World":
        """Three nodes and these facts; `generation`: of policies, which select nobody here."""
        program = program_of(*facts, ovs_version=ovs_version, tunnel=tunnel, generation=generation)
        return cls(Tracer.of(program))

    def send(self, source: str, target: str, port: int, **fields: Any) -> Trace:
        """
        The first packet of a connection, or the next one; what it leaves behind is kept.

        `source`: `p11`, `p12` (Pods of n1), `node` (n1 itself, from its gateway address), `host`
        (from its own address), `p21` (a Pod of n2, routed to here) or an address in the world
        outside.
        """
        trace = self.tracer.trace(
            first_packet(source, target, port, **fields), self.conntrack, learned=self.learned
        )
        self.conntrack, self.learned = trace.conntrack, trace.learned
        return trace

    def verdict(self, source: str, target: str, port: int, **fields: Any) -> Verdict:
        """What becomes of a new connection, whatever bucket it takes."""
        sent = first_packet(source, target, port, **fields)
        traces = self.tracer.trace_all(sent)
        found = {end_of(trace, sent) for trace in traces}
        ends = {end for end in found if isinstance(end, tuple)}
        if not ends:
            (word,) = found
            assert isinstance(word, str)
            return word
        assert found == ends, found
        (translated,) = {changed for _, changed in ends}
        return Answer(frozenset(name for name, _ in ends), translated)


def program_of(
    *facts: AnyFact, ovs_version: str = "3.3.0", tunnel: bool = False, generation: int = 0
) -> Program:
    """Flows and groups of n1 for three nodes and these facts; see World.of."""
    state = State(CLUSTER)
    known: list[AnyFact] = list(facts)
    for number, zone in ZONES.items():
        known.append(node(f"n{number}", number, zone=zone))
        changes = {"tunnel_port": 3} if tunnel else {"tunnel_port": 0, "tunnel_type": ""}
        known.append(switch(f"n{number}", number, ovs_version=ovs_version, **changes))
    step(state, [Upserted(fact) for fact in known])
    planned = [i for i in intents(state).values() if i.scope in ("all", "n1")]
    planned += [*pods(), *subjects()]
    if generation:
        planned.append(PolicyGenerationIntent(scope="all", key="all", generation=generation))
    return compiled(planned)


def compiled(planned: list[AnyIntent]) -> Program:
    """Everything on the switch of n1."""
    (own,) = (i for i in planned if isinstance(i, SwitchIntent))
    context = switch_context(own)
    program = Program()
    for intent in planned:
        program += compile_intent(intent, context)
    return program


def pods() -> list[EndpointIntent]:
    """The Pods of n1, on ports 11 and 12."""
    return [
        EndpointIntent(
            scope="n1",
            key=f"default/p1{pod}/eth0",
            pod_namespace="default",
            pod_name=f"p1{pod}",
            ofport=10 + pod,
            mac=pod_mac(pod),
            ips=(ip_address(pod_ip(1, pod)), ip_address(pod_ip(1, pod, 6))),
        )
        for pod in (1, 2)
    ]


def subjects() -> list[PolicySubjectIntent]:
    """No policy selects them."""
    return [
        PolicySubjectIntent(scope="n1", key=f"default/{pod.pod_name}", ips=pod.ips)
        for pod in pods()
    ]


def first_packet(
    source: str,
    target: str,
    port: int,
    *,
    protocol: Protocol = Protocol.TCP,
    source_port: int = 40000,
) -> dict[str, int]:
    """A packet as it comes into br-int."""
    version = ip_address(target).version
    prefix = protocol.value.lower()
    fields: dict[str, MatchValue] = {
        "eth_type": 0x800 if version == 4 else 0x86DD,
        "nw_proto": PROTOCOL_NUMBERS[protocol],
        "nw_ttl": 64,
        f"{prefix}_src": source_port,
        f"{prefix}_dst": port,
    }
    src, dst = ("nw_src", "nw_dst") if version == 4 else ("ipv6_src", "ipv6_dst")
    fields[dst] = ip_address(target)
    fields |= _from(source, version)
    fields[src] = ip_address(address_of(source, version))
    return packet(**fields)


def address_of(source: str, version: int) -> str:
    """Where a client sends from."""
    if source == "node":
        return "10.244.1.1" if version == 4 else "fd00:10:244:1::1"
    if source == "host":
        return NODE_IP if version == 4 else NODE_IP6
    if source.startswith("p") and source[1:].isdigit():
        return pod_ip(int(source[1]), int(source[2]), version)
    return source


def _from(source: str, version: int) -> dict[str, MatchValue]:
    if source in ("node", "host"):
        return {"in_port": GATEWAY}
    if source.startswith("p1"):
        return {"in_port": 10 + int(source[2]), "eth_src": pod_mac(int(source[2]))}
    if source.startswith("p"):
        return {"in_port": UPLINK, "eth_dst": str(switch("n1").router_mac)}
    return {"in_port": UPLINK, "pkt_mark": EXTERNAL_PKT_MARK}


def end_of(trace: Trace, sent: dict[str, int]) -> tuple[str, bool] | str:
    if trace.dropped:
        return DROP
    (left,) = trace.left
    if left.port == OFPP_CONTROLLER:
        assert left.userdata == REJECT_USERDATA
        return REJECT
    src, dst = ("nw_src", "nw_dst") if sent["eth_type"] == 0x800 else ("ipv6_src", "ipv6_dst")
    if left.port == sent["in_port"] and all(left.packet[f] == sent[f] for f in (src, dst)):
        return NODE
    kind = type(ip_address("0.0.0.0" if src == "nw_src" else "::"))
    name = next(n for n in ("tcp_dst", "udp_dst", "sctp_dst") if n in sent)
    return f"{kind(left.packet[dst])}:{left.packet[name]}", left.packet[src] != sent[src]
