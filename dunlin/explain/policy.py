"""`dunlin policy explain SRC DST PORT`: who lets a connection pass, or who does not. Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dunlin.events.intents import AnyIntent, EndpointIntent, ServicePortIntent
from dunlin.explain.answer import Answer, End, Judgement, Path, Verdict, overall
from dunlin.explain.question import BadQuestion, Place, Question
from dunlin.explain.walk import ENDPOINTS_MAX, Start, Walked, Walker, first_packet
from dunlin.explain.world import World
from dunlin.model.addresses import GATEWAY_MAC, IPAddress, mac_to_int


@dataclass(frozen=True, slots=True)
class _Target:
    """One address and port to connect to; `text`: as it was asked for."""

    ip: IPAddress
    port: int
    text: str


def explain(world: World, question: Question) -> Answer:
    """
    Every way that a new connection can go.

    Raises:
        BadQuestion: an end that is not there, or no address family in common.
        CannotTrace: flows of a kind that the tracer does not know.
    """
    sources = _sources(world, question.source)
    targets = _targets(world, question)
    services = _services(world, question, targets)
    pairs = [(s, t) for s in sources for t in targets if s.version == t.ip.version]
    if not pairs:
        raise BadQuestion("SRC and DST have no address of the same family")
    ips = {*sources, *(t.ip for t in targets)}
    ips |= {endpoint.ip for service in services for endpoint in service.endpoints}
    ports = {t.port for t in targets}
    ports |= {endpoint.port for service in services for endpoint in service.endpoints}
    host_ports = [h for t in targets for h in world.host_ports_at(t.ip, t.port)]
    ips |= {endpoint.ip for asked_for in host_ports for endpoint in asked_for.endpoints}
    ports |= {endpoint.port for asked_for in host_ports for endpoint in asked_for.endpoints}
    intents: list[AnyIntent] = [*services, *host_ports, *world.local_services(services)]
    for local in world.local_services(services):
        ips |= {e.ip for family in local.families for e in (*family.local, *family.node)}
    intents += world.pods_at(ips)
    intents += world.routes(ips)
    intents += world.policy_intents(ips, ports)
    asked = _Asker(world, question, Walker(world, intents), intents)
    paths = tuple(path for source, target in pairs for path in asked.paths(source, target))
    return Answer(
        _name(question.source),
        _name(question.destination),
        f"{question.port}/{question.protocol}" if question.port else question.protocol,
        overall([path.verdict for path in paths]),
        paths,
        complete=all(len(service.endpoints) <= ENDPOINTS_MAX for service in services),
    )


def _name(place: Place) -> str:
    if place.kind == "address":
        return str(place.ip)
    return f"{place.kind} {place.namespace}/{place.name}"


# --- the ends -------------------------------------------------------------------------------------


def _pod(world: World, place: Place) -> list[EndpointIntent]:
    found = world.pod(place.namespace, place.name)
    if not found:
        raise BadQuestion(
            f"no Pod {place.namespace}/{place.name} with an interface of Dunlin "
            "(one on its node's network is its node: give an address)"
        )
    return found


def _sources(world: World, place: Place) -> list[IPAddress]:
    if place.ip is not None:
        return [place.ip]
    return [ip for endpoint in _pod(world, place) for ip in endpoint.ips]


def _targets(world: World, question: Question) -> list[_Target]:
    place = question.destination
    port = int(question.port) if question.port.isdecimal() else 0
    if place.ip is not None:
        return [_Target(place.ip, port, str(place.ip))]
    if place.kind == "pod":
        ips = [ip for endpoint in _pod(world, place) for ip in endpoint.ips]
        return [_Target(ip, port, str(ip)) for ip in ips]
    service = _service_port(world, question)
    found = [_Target(a.ip, service.port, str(a.ip)) for a in service.addresses]
    if not found:
        raise BadQuestion(f"Service {place.namespace}/{place.name} has no cluster IP")
    return found


def _service_port(world: World, question: Question) -> ServicePortIntent:
    place = question.destination
    found = world.service_ports(place.namespace, place.name)
    if not found:
        raise BadQuestion(f"no Service {place.namespace}/{place.name}")
    for service in found:
        named = question.port in (str(service.port), service.port_name)
        if named and service.protocol == question.protocol:
            return service
    known = ", ".join(sorted(f"{s.port}/{s.protocol}" for s in found))
    raise BadQuestion(
        f"Service {place.namespace}/{place.name} has no port "
        f"{question.port or '-'}/{question.protocol}; it has {known}"
    )


def _services(
    world: World, question: Question, targets: Sequence[_Target]
) -> list[ServicePortIntent]:
    """Every ServicePort that the packets may be for."""
    if question.destination.kind == "service":
        return [_service_port(world, question)]
    if question.destination.kind == "pod":
        return []
    return [s for t in targets for s in world.services_at(t.ip, t.port)]


# --- the way --------------------------------------------------------------------------------------


class _Asker:
    """One question about one world."""

    def __init__(
        self, world: World, question: Question, walker: Walker, intents: Sequence[AnyIntent]
    ) -> None:
        self._world = world
        self._question = question
        self._walker = walker
        self._pods = {ip: e for e in intents if isinstance(e, EndpointIntent) for ip in e.ips}
        self._services = [s for s in intents if isinstance(s, ServicePortIntent)]

    def paths(self, source: IPAddress, target: _Target) -> Iterator[Path]:
        """Every way from one address to another."""
        start = self._start(source)
        if start is None:
            yield from self._from_outside(source, target)
            return
        fields = first_packet(start, target.ip, target.port, self._question.protocol)
        for walked in self._walker.walk(start, fields):
            yield self._path(source, target, walked)

    def _start(self, source: IPAddress) -> Start | None:
        """Where a packet from `source` comes in; None: from the world outside."""
        pod = self._pods.get(source)
        if pod is not None:
            return Start(
                pod.scope, pod.ofport, mac_to_int(pod.mac), mac_to_int(GATEWAY_MAC), source
            )
        node = self._world.node_at(source)
        if not node:
            return None
        switch = self._world.switches[node]
        mac = mac_to_int(switch.router_mac)
        return Start(node, switch.gateway_port, mac, mac_to_int(GATEWAY_MAC), source)

    def _from_outside(self, source: IPAddress, target: _Target) -> Iterator[Path]:
        """
        Straight to the Pods: as their nodes see it.

        Where a node translates the source (externalTrafficPolicy Cluster), it is judged as a node.
        """
        found = [(e.ip, e.port) for s in self._services for e in s.endpoints]
        for ip, port in found or [(target.ip, target.port)]:
            if ip.version != source.version:
                continue
            pod = self._pods.get(ip)
            if pod is None:
                raise BadQuestion(f"{source} and {ip}: neither is a Pod or a node of this cluster")
            switch = self._world.switches[pod.scope]
            port_in = switch.uplink_port or switch.tunnel_port or switch.gateway_port
            router = mac_to_int(switch.router_mac)
            start = Start(pod.scope, port_in, router, router, source)
            fields = first_packet(start, ip, port, self._question.protocol)
            for walked in self._walker.walk(start, fields):
                yield self._path(source, target, walked)

    def _path(self, source: IPAddress, target: _Target, walked: Walked) -> Path:
        verdict, reason = self._verdict(source, walked)
        return Path(
            self._end(source),
            f"{target.text} port {target.port}" if target.port else target.text,
            self._end(walked.ip),
            walked.port,
            verdict,
            reason,
            walked.judgements,
        )

    def _verdict(self, source: IPAddress, walked: Walked) -> tuple[Verdict, str]:
        for judgement in walked.judgements:
            if not judgement.allowed:
                return "DENIED", denial(judgement)
        if not walked.arrived:
            return "UNREACHABLE", f"no policy is against it, but it is {walked.ended}"
        if not walked.judgements:
            return "ALLOWED", "a Pod and itself are not judged" if source == walked.ip else ""
        return "ALLOWED", ""

    def _end(self, ip: IPAddress) -> End:
        pod = self._pods.get(ip)
        if pod is not None:
            return End("pod", f"{pod.pod_namespace}/{pod.pod_name}", pod.scope, str(ip))
        node = self._world.node_at(ip)
        return End("node" if node else "address", node, node, str(ip))


def denial(judgement: Judgement) -> str:
    """Why not, in one line."""
    match judgement.why:
        case "isolated":
            names = ", ".join(policy.text for policy in judgement.isolated_by)
            verb = "isolates" if len(judgement.isolated_by) == 1 else "isolate"
            return f"{judgement.direction}: {names} {verb} the Pod, and no rule allows it"
        case "rule":
            return f"{judgement.direction}: {judgement.rules[0].text} denies it"
        case "fenced":
            return f"{judgement.direction}: the Pod is fenced until its policies are known"
    return f"{judgement.direction}: denied"
