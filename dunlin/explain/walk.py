"""A packet from one end to the other, through the flows of the nodes on its way. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv6Address

from dunlin.events.facts import Protocol
from dunlin.events.intents import AnyIntent
from dunlin.explain.answer import Judgement, RuleRef
from dunlin.explain.judge import Judge, without
from dunlin.explain.world import World
from dunlin.model.addresses import IPAddress, mac_to_int
from dunlin.openflow.fields import ETH_IPV4, ETH_IPV6
from dunlin.openflow.flow import OFPP_CONTROLLER, Bucket, Group
from dunlin.openflow.packet import Packet, address_fields, packet, port_fields
from dunlin.openflow.trace import Choose, Left, Trace, Tracer
from dunlin.pipeline.families import PROTOCOL_NUMBERS
from dunlin.pipeline.layout import Zone, table_names

RULES_MAX = 16
"""So many rules that allow one packet are named."""
ENDPOINTS_MAX = 128
"""So many ways of load balancing are walked."""
CLIENT_PORT = 40_000
_CARRIED = ("eth_", "nw_", "ipv6_", "tcp_", "udp_", "sctp_", "icmp")
"""Fields that a packet has on the wire; registers and conntrack stay behind."""


@dataclass(frozen=True, slots=True)
class Walked:
    """
    One way that a packet can go.

    `ip`, `port`: the destination after load balancing. `arrived`: at `ip`. `ended`: where it was
    dropped, for people.
    """

    ip: IPAddress
    port: int
    arrived: bool
    ended: str
    judgements: tuple[Judgement, ...]


@dataclass(frozen=True, slots=True)
class Start:
    """Where a packet comes into a switch: `in_port` of `node`, from `ip`."""

    node: str
    in_port: int
    eth_src: int
    eth_dst: int
    ip: IPAddress


def first_packet(start: Start, ip: IPAddress, port: int, protocol: str) -> dict[str, int]:
    """Of a new connection."""
    v4 = ip.version == 4
    names = ("nw_src", "nw_dst") if v4 else ("ipv6_src", "ipv6_dst")
    values: dict[str, int | IPAddress] = {
        "in_port": start.in_port,
        "eth_src": start.eth_src,
        "eth_dst": start.eth_dst,
        "eth_type": ETH_IPV4 if v4 else ETH_IPV6,
        names[0]: start.ip,
        names[1]: ip,
        "nw_ttl": 64,
    }
    if protocol == "ICMP":
        values |= {"nw_proto": 1, "icmp_type": 8} if v4 else {"nw_proto": 58, "icmpv6_type": 128}
    else:
        name = protocol.lower()
        number = PROTOCOL_NUMBERS[Protocol(protocol)]
        values |= {"nw_proto": number, f"{name}_src": CLIENT_PORT, f"{name}_dst": port}
    return packet(**values)


class Walker:
    """Walks packets through switches that hold `intents`."""

    def __init__(self, world: World, intents: Sequence[AnyIntent]) -> None:
        self._world = world
        self._intents = intents
        self._tracers: dict[str, Tracer] = {}
        self._routers = {mac_to_int(s.router_mac): node for node, s in world.switches.items()}

    def walk(self, start: Start, fields: dict[str, int]) -> list[Walked]:
        """Every way from there, one for each endpoint that may be chosen, and that node's end."""
        traces = self._tracer(start.node).trace_all(fields, most=ENDPOINTS_MAX)
        found: dict[tuple[IPAddress, int], Walked] = {}
        for trace in traces:
            for one in self._onward(start.node, fields, trace):
                found.setdefault((one.ip, one.port), one)
        return list(found.values())

    def _onward(self, node: str, fields: dict[str, int], trace: Trace) -> Iterator[Walked]:
        """Where it left, or the next switch that it comes to."""
        mine = tuple(self._judgements(node, fields, trace))
        ip, port = _destination(trace, fields)
        if trace.dropped or trace.ports == (OFPP_CONTROLLER,):
            yield Walked(ip, port, False, _end(trace), mine)
            return
        there = self._next(node, trace.left[0])
        if there is None:
            yield Walked(ip, port, True, "", mine)
            return
        onward = {
            name: value for name, value in trace.left[0].packet.items() if name.startswith(_CARRIED)
        }
        onward["in_port"] = self._arrival(node, trace.ports[0], there)
        last = self._tracer(there).trace(onward)
        theirs = tuple(self._judgements(there, onward, last))
        arrived = not last.dropped and last.ports != (OFPP_CONTROLLER,)
        # What the other switch says of the sender is nothing: it is no Pod there.
        theirs = tuple(j for j in theirs if j.direction == "ingress")
        yield Walked(ip, port, arrived, "" if arrived else _end(last), _joined(mine, theirs))

    def _next(self, node: str, left: Left) -> str | None:
        """The node whose router a packet is addressed to when it leaves for another one."""
        switch = self._world.switches[node]
        if left.port not in {switch.uplink_port, switch.tunnel_port} - {0}:
            return None
        return self._routers.get(left.packet.get("eth_dst", 0))

    def _arrival(self, node: str, port: int, there: str) -> int:
        """By the same kind of port."""
        tunnel = port == self._world.switches[node].tunnel_port
        switch = self._world.switches[there]
        return switch.tunnel_port if tunnel else switch.uplink_port

    def _tracer(self, node: str) -> Tracer:
        found = self._tracers.get(node)
        if found is None:
            program = self._world.program(node, self._intents)
            found = self._tracers[node] = Tracer.of(program)
        return found

    def _judgements(self, node: str, fields: dict[str, int], trace: Trace) -> Iterator[Judgement]:
        judge = Judge(self._world, node, self._intents)
        for judgement in judge.judgements(trace):
            if judgement.why == "rule" and judgement.rules[0].tier == "default":
                rules = self._all_rules(judge, node, fields, trace, judgement)
                yield replace(judgement, rules=rules)
            else:
                yield judgement

    def _all_rules(
        self, judge: Judge, node: str, fields: dict[str, int], trace: Trace, first: Judgement
    ) -> tuple[RuleRef, ...]:
        """NetworkPolicies add up: every rule without which another one would still allow it."""
        rules, removed = list(first.rules), set[int]()
        program = self._world.program(node, self._intents)
        buckets = [bucket_id for _, bucket_id in trace.buckets]
        now = trace
        while len(removed) < RULES_MAX:
            deciding = judge.deciding(now, first.direction)
            if deciding is None:
                break
            removed.add(deciding)
            now = Tracer.of(without(program, removed)).trace(fields, choose=_replay(buckets))
            again = [j for j in judge.judgements(now) if j.direction == first.direction]
            rules += [r for j in again if j.allowed for r in j.rules if r not in rules]
        return tuple(rules)


def _replay(bucket_ids: Sequence[int]) -> Choose:
    """Load balancing as it went before."""
    left = list(bucket_ids)

    def choose(_group: Group, buckets: tuple[Bucket, ...], _packet: Packet) -> Bucket:
        wanted = left.pop(0)
        return next(bucket for bucket in buckets if bucket.bucket_id == wanted)

    return choose


def _destination(trace: Trace, fields: dict[str, int]) -> tuple[IPAddress, int]:
    """After load balancing, also where the packet did not leave."""
    kind = IPv4Address if fields["eth_type"] == ETH_IPV4 else IPv6Address
    for connection in trace.conntrack.connections:
        if connection.zone == Zone.MAIN and connection.nat == "dst":
            return kind(connection.reply.src), connection.reply.src_port
    ports = port_fields(fields)
    return kind(fields[address_fields(fields)[1]]), fields[ports[1]] if ports else 0


def _end(trace: Trace) -> str:
    """Where it was dropped, or refused."""
    table = table_names()[trace.steps[-1].table]
    return f"refused in {table}" if trace.left else f"dropped in {table}"


def _joined(mine: tuple[Judgement, ...], theirs: tuple[Judgement, ...]) -> tuple[Judgement, ...]:
    """Ingress is judged where the destination is."""
    return (*(j for j in mine if j.direction == "egress" or not theirs), *theirs)
