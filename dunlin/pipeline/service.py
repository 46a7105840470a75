"""
ServicePorts: frontends -> the set of endpoints wanted -> a select group.

ServiceLB knows addresses and ports. A ServicePort that is alike everywhere goes from there to its
group; one with a policy Local, topology hints or affinity goes on to ServiceEndpoints with the set
wanted in a register, where the node's own intent (LocalServiceIntent) overrides by priority what is
the same for all. ADR 0007.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from dunlin.events.intents import (
    LocalServiceIntent,
    ServiceEndpoint,
    ServiceFamily,
    ServicePortIntent,
)
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin.openflow.flow import (
    Action,
    Controller,
    Ct,
    Group,
    Match,
    Nat,
    Program,
    ToGroup,
    match,
    set_field,
    with_fields,
)
from dunlin.pipeline.affinity import affinity_groups, choose_with_affinity, remember
from dunlin.pipeline.base import FlowMaker
from dunlin.pipeline.families import (
    Family,
    family_of,
    family_of_version,
    first_to_l4_port,
)
from dunlin.pipeline.layout import (
    ENDPOINT_REG,
    EXTERNAL_PKT_MARK,
    FLAGS,
    FLAT_BUCKETS_MAX,
    HAS_SCTP,
    NULL_NAT,
    REJECT_MAX_LEN,
    REJECT_USERDATA,
    SERVICE,
    TO_NODE,
    WANTED_REG,
    ZONE_REG,
    Priority,
    Table,
    Zone,
    zone_number,
)
from dunlin.pipeline.spread import slot_group, slots, spread_group
from dunlin.pipeline.traffic import count_endpoint, endpoint_number, note_endpoint

REJECT: tuple[Action, ...] = (Controller(REJECT_MAX_LEN, REJECT_USERDATA),)
"""The controller refuses: a TCP RST or an ICMP error. docs/services.md says what it is to do."""
_MARK = set_field("ct_mark", SERVICE.pair)
_EXTERNAL = match(pkt_mark=EXTERNAL_PKT_MARK)


def compile_service(intent: ServicePortIntent) -> Program:
    """The same program for every switch."""
    make = ProgramMaker(FlowMaker(intent.id), intent.key, intent.affinity_timeout_s)
    for family in families_of(intent):
        _family(make, intent, family)
    if intent.traffic:
        for number in dict.fromkeys(map(make.number, intent.endpoints)):
            count_endpoint(make.make, number)
    return make.program


def compile_local_service(intent: LocalServiceIntent) -> Program:
    """What stands on its own node only: above what the ServicePortIntent says there."""
    make = ProgramMaker(FlowMaker(intent.id), intent.key, intent.affinity_timeout_s)
    for part in intent.families:
        family = family_of_version(part.version)
        if part.local:
            wanted = _wanted(family, part.local_group_id)
            make.endpoints(Priority.EXACT, wanted, part.local_group_id, part.local)
        if part.node:
            wanted = _wanted(family, part.group_id)
            make.endpoints(Priority.EXACT, wanted, part.node_group_id, part.node)
    return make.program


def families_of(intent: ServicePortIntent) -> tuple[ServiceFamily, ...]:
    """Its families; of an intent that has none (from an older planner), by its addresses."""
    if intent.families:
        return intent.families
    groups = {a.ip.version: a.group_id for a in intent.addresses}
    return tuple(ServiceFamily(version=v, group_id=groups[v]) for v in sorted(groups))


@dataclass
class ProgramMaker:
    """Flows and groups of one intent; a group once, however many frontends lead to it."""

    make: FlowMaker
    service_key: str
    affinity_timeout_s: int

    def __post_init__(self) -> None:
        self.groups: dict[int, Group] = {}
        # By identity, of endpoints that the intent keeps: to hash one takes as long as its number.
        self._numbers: dict[int, int] = {}

    @property
    def program(self) -> Program:
        """All of it."""
        return Program(tuple(self.make.flows), tuple(self.groups.values()))

    def endpoints(
        self, priority: int, when: Match, group_id: int, chosen: tuple[ServiceEndpoint, ...]
    ) -> None:
        """A flow of ServiceEndpoints that chooses one of these, and all that it needs."""
        if not self.affinity_timeout_s:
            self.make.add(Table.SERVICE_ENDPOINTS, priority, when, (ToGroup(group_id),))
            self.spread(group_id, chosen)
            return
        actions, goto = choose_with_affinity(group_id)
        self.make.add(Table.SERVICE_ENDPOINTS, priority, when, actions, goto)
        remember(self.make, group_id, chosen, self.affinity_timeout_s, self.translate)
        self._add(affinity_groups(group_id, chosen))

    def spread(self, group_id: int, chosen: tuple[ServiceEndpoint, ...]) -> None:
        """The select group over these."""
        if group_id in self.groups:
            return
        if len(chosen) <= FLAT_BUCKETS_MAX:
            choices = [self.translate(endpoint) for endpoint in chosen]
            self._add((spread_group(group_id, choices),))
            return
        self._add((slot_group(group_id, len(chosen)),))
        ours = with_fields(family_of(chosen[0].ip).any, match(**{WANTED_REG: group_id}))
        for bits, endpoint in slots(chosen):
            when = with_fields(ours, match(**{ENDPOINT_REG: bits}))
            self.make.add(Table.ENDPOINT_SLOT, Priority.DEFAULT, when, self.translate(endpoint))

    def translate(self, endpoint: ServiceEndpoint) -> tuple[Action, ...]:
        """In the bucket itself: a new connection costs no upcall, and stays where it is."""
        nat = Nat("dst", endpoint.ip, endpoint.ip, endpoint.port, endpoint.port)
        return (self._commit(endpoint, nat),)

    def as_it_is(self, endpoint: ServiceEndpoint) -> Ct:
        """The same for what is sent to this endpoint already."""
        return self._commit(endpoint, None)

    def number(self, endpoint: ServiceEndpoint) -> int:
        """The same in every group that it is in."""
        found = self._numbers.get(id(endpoint))
        if found is None:
            found = self._numbers[id(endpoint)] = endpoint_number(self.service_key, endpoint)
        return found

    def _commit(self, endpoint: ServiceEndpoint, nat: Nat | None) -> Ct:
        note = (_MARK, note_endpoint(self.number(endpoint)))
        return Ct(Zone.MAIN, commit=True, table=Table.ENDPOINT_SELECTED, nat=nat, exec=note)

    def _add(self, groups: tuple[Group, ...]) -> None:
        for group in groups:
            self.groups.setdefault(group.group_id, group)


@dataclass(frozen=True, slots=True)
class _Target:
    """Where frontends lead: `actions` and `goto` of a flow of ServiceLB."""

    actions: tuple[Action, ...]
    goto: Table | None = None


def _family(make: ProgramMaker, intent: ServicePortIntent, family: ServiceFamily) -> None:
    chosen = tuple(e for e in intent.endpoints if e.ip.version == family.version)
    if not chosen:
        # Nobody anywhere: refused, whatever the policy.
        refuse = _Target(REJECT)
        _frontends(make.make, intent, family, refuse, refuse)
        return
    cluster, local = _Target((ToGroup(family.group_id),)), _want(family.local_group_id)
    special = family.zones or family.node_group_id or make.affinity_timeout_s
    if special:
        cluster = _want(family.group_id)
    inside = local if intent.internal_local else cluster
    outside = local if intent.external_local else cluster
    _frontends(make.make, intent, family, inside, outside, cluster)
    _frontends_as_they_are(make, intent, chosen)
    words = family_of_version(family.version)
    if intent.internal_local or intent.external_local:
        # Nobody on this node: dropped, not refused, so that the client tries another node.
        make.make.add(
            Table.SERVICE_ENDPOINTS, Priority.DEFAULT, _wanted(words, family.local_group_id)
        )
    if intent.internal_local and not (intent.external or intent.node_port):
        return
    if not special:
        make.spread(family.group_id, chosen)
        return
    wanted = _wanted(words, family.group_id)
    make.endpoints(Priority.DEFAULT, wanted, family.group_id, chosen)
    for zone in family.zones:
        here = with_fields(wanted, match(**{ZONE_REG: zone_number(zone.zone)}))
        make.endpoints(Priority.LOCAL, here, zone.group_id, zone.endpoints)


def _want(group_id: int) -> _Target:
    return _Target((set_field(WANTED_REG, group_id),), Table.SERVICE_ENDPOINTS)


def _wanted(family: Family, group_id: int) -> Match:
    return with_fields(family.any, match(**{WANTED_REG: group_id}))


def _frontends(
    make: FlowMaker,
    intent: ServicePortIntent,
    family: ServiceFamily,
    inside: _Target,
    outside: _Target,
    shortcut: _Target | None = None,
) -> None:
    """
    Cluster IPs by the internal policy, all else by the external one.

    But for Pods and the node itself, which take `shortcut`.

    `shortcut`: where those go that do not come from beyond the node's uplink.
    """
    words = family_of_version(family.version)
    gate = _gate(intent)
    for address in intent.addresses:
        if address.ip.version == family.version:
            when = with_fields(words.first_to_port(address.ip, intent.protocol, intent.port), gate)
            make.add(Table.SERVICE_LB, Priority.EXACT, when, inside.actions, inside.goto)
    near = shortcut or outside
    for external in intent.external:
        if external.ip.version != family.version:
            continue
        when = with_fields(words.first_to_port(external.ip, intent.protocol, intent.port), gate)
        for allowed in _allowed(external.sources):
            _outer(make, Priority.EXACT, with_fields(when, allowed), near, outside)
        if external.sources:
            make.add(Table.SERVICE_LB, Priority.EXACT - 2, when)
    if intent.node_port:
        l4 = first_to_l4_port(intent.protocol, intent.node_port)
        flags = match(**{FLAGS: _flags(intent)})
        when = with_fields(with_fields(words.any, l4), flags)
        _outer(make, Priority.LOCAL, when, near, outside)


def _frontends_as_they_are(
    make: ProgramMaker, intent: ServicePortIntent, chosen: tuple[ServiceEndpoint, ...]
) -> None:
    """
    A frontend that is one of its own endpoints, address and port, is not translated.

    As on a node whose address is an external IP, with an endpoint on host network. Only for an Open
    vSwitch that would end by such a translation (ADR 0044); others choose among all endpoints.
    """
    sources: dict[IPAddress, tuple[IPNetwork, ...]] = {a.ip: () for a in intent.addresses}
    sources |= {external.ip: external.sources for external in intent.external}
    bits = _flags(intent)[0]
    for endpoint in chosen:
        allowed = sources.get(endpoint.ip) if endpoint.port == intent.port else None
        if allowed is None and endpoint.port != intent.node_port:
            continue
        wanted = bits if allowed is None else bits & ~TO_NODE.mask
        when = family_of(endpoint.ip).first_to_port(endpoint.ip, intent.protocol, endpoint.port)
        when = with_fields(when, match(**{FLAGS: (wanted, wanted | NULL_NAT.mask)}))
        for source in _allowed(allowed or ()):
            here, commit = with_fields(when, source), make.as_it_is(endpoint)
            make.make.add(Table.SERVICE_LB, Priority.EXACT + 10, here, (commit,))


def _outer(make: FlowMaker, priority: int, when: Match, near: _Target, far: _Target) -> None:
    make.add(Table.SERVICE_LB, priority, when, near.actions, near.goto)
    if far != near:
        when = with_fields(when, _EXTERNAL)
        make.add(Table.SERVICE_LB, priority + 5, when, far.actions, far.goto)


def _allowed(sources: tuple[IPNetwork, ...]) -> Iterator[Match]:
    """A match for each range; for none at all, everybody."""
    if not sources:
        yield ()
    for source in sources:
        yield family_of(source).from_(source) if source.prefixlen else ()


def _gate(intent: ServicePortIntent) -> Match:
    """SCTP only where Open vSwitch can; TO_NODE belongs to NodePorts."""
    if intent.protocol.value != "SCTP":
        return ()
    return match(**{FLAGS: HAS_SCTP.pair})


def _flags(intent: ServicePortIntent) -> tuple[int, int]:
    bits = TO_NODE.value | (HAS_SCTP.value if intent.protocol.value == "SCTP" else 0)
    return bits, bits
