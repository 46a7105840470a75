"""
What policies say, in flows: classes, clauses, verdicts. docs/design/policy.md draws the whole.

Addresses become classes in registers, then conjunctions of (subject, peer, port) decide, for a
named port in a network of (subject, network, port, Pod with that name). A flow that many rules
share is made by one intent that lists them all, so no two intents own one key.
"""

from collections import defaultdict
from collections.abc import Iterable

from dunlin.events.intents import (
    Clause,
    PolicyClassIntent,
    PolicyDirection,
    PolicyIntent,
    PolicyNetworkIntent,
    PolicyPeerIntent,
    PolicyPortIntent,
    PolicyRule,
    PolicyTier,
)
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin.openflow.flow import (
    Action,
    Conjunction,
    Controller,
    Match,
    Program,
    match,
    set_field,
    with_fields,
)
from dunlin.pipeline.base import FlowMaker
from dunlin.pipeline.families import FAMILIES, PROTOCOL_NUMBERS, family_of
from dunlin.pipeline.layout import (
    DENY_MAX_LEN,
    DENY_METER,
    DENY_USERDATA,
    EGRESS_RULE_LABEL_SHIFT,
    EGRESS_RULE_REG,
    GENERATION_MASK,
    INGRESS_RULE_LABEL_SHIFT,
    INGRESS_RULE_REG,
    NETWORK_REGS,
    PEER_REGS,
    RULE_LABEL_MASK,
    SUBJECT_REGS,
    Priority,
    Table,
)

TABLES: dict[tuple[PolicyDirection, PolicyTier], Table] = {
    ("egress", "admin"): Table.EGRESS_ADMIN,
    ("egress", "default"): Table.EGRESS_POLICY,
    ("egress", "baseline"): Table.EGRESS_BASELINE,
    ("ingress", "admin"): Table.INGRESS_ADMIN,
    ("ingress", "default"): Table.INGRESS_POLICY,
    ("ingress", "baseline"): Table.INGRESS_BASELINE,
}
AFTER: dict[PolicyDirection, Table] = {
    "egress": Table.INGRESS_SUBJECT,
    "ingress": Table.COMMIT,
}
"""Where a packet goes that one direction allows."""
PEER_TABLES: dict[PolicyDirection, Table] = {
    "egress": Table.EGRESS_PEER,
    "ingress": Table.INGRESS_PEER,
}
NETWORK_TABLES: dict[PolicyDirection, Table] = {
    "egress": Table.EGRESS_NETWORK,
    "ingress": Table.INGRESS_NETWORK,
}
METRICS: dict[PolicyDirection, tuple[Table, str, int]] = {
    "egress": (Table.EGRESS_METRIC, EGRESS_RULE_REG, EGRESS_RULE_LABEL_SHIFT),
    "ingress": (Table.INGRESS_METRIC, INGRESS_RULE_REG, INGRESS_RULE_LABEL_SHIFT),
}
"""Where established packets are counted, the register of a new one's rule, its bits of ct_label."""
AFTER_METRIC: dict[PolicyDirection, Table] = {
    "egress": Table.INGRESS_METRIC,
    "ingress": Table.L3_FORWARD,
}
FIRST_PACKET = match(ct_mark=(0, GENERATION_MASK))
"""Of a connection that was never judged: counts connections, however often a packet repeats."""
_REGISTERS = {
    "ingress": SUBJECT_REGS,
    "egress": SUBJECT_REGS,
    "peer": PEER_REGS,
    "network": NETWORK_REGS,
}
NETWORK_PRIORITY = 1000
"""Plus the prefix length: the longest prefix wins."""


def set_class(registers: tuple[str, str], class_id: int) -> tuple[Action, ...]:
    """Write a class into its registers."""
    high, low = registers
    return (set_field(high, class_id >> 32), set_field(low, class_id & 0xFFFFFFFF))


def match_class(registers: tuple[str, str], class_id: int) -> Match:
    """Packets of a class."""
    high, low = registers
    return match(**{high: class_id >> 32, low: class_id & 0xFFFFFFFF})


def compile_policy(intent: PolicyIntent) -> Program:
    """The verdict of each rule: who allowed is noted for ct_label, and counts by it (ADR 0018)."""
    make = FlowMaker(intent.id)
    for rule in intent.rules:
        table, goto = TABLES[rule.direction, intent.tier], _verdict(intent.tier, rule)
        priority = intent.priority - rule_rank(intent, rule)
        when = match(conj_id=rule.conj_id)
        if rule.action != "Accept":
            log = log_denied(f"R{rule.conj_id}:{intent.key}", intent.log and rule.action == "Deny")
            make.add(table, priority, when, log, goto)
            continue
        metric, register, shift = METRICS[rule.direction]
        note = (set_field(register, rule.conj_id),)
        make.add(table, priority, when, note, goto)
        make.add(table, priority + 1, with_fields(when, FIRST_PACKET), note, goto)
        allowed = match(ct_label=(rule.conj_id << shift, RULE_LABEL_MASK << shift))
        make.add(metric, Priority.EXACT, allowed, (), AFTER_METRIC[rule.direction])
    return Program(tuple(make.flows))


def rule_rank(intent: PolicyIntent, rule: PolicyRule) -> int:
    """Rules of a NetworkPolicy are equals; of a ClusterNetworkPolicy the first one decides."""
    return 0 if intent.tier == "default" else rule.index


def _verdict(tier: PolicyTier, rule: PolicyRule) -> Table:
    """Pass leaves the tier: after Baseline, too, there is only the default, which allows."""
    match rule.action:
        case "Accept":
            return AFTER[rule.direction]
        case "Deny":
            return Table.POLICY_DENY
        case "Pass":
            after = AFTER[rule.direction]
            return TABLES[rule.direction, "default"] if tier == "admin" else after


def compile_class(intent: PolicyClassIntent) -> Program:
    """Which clauses a class fulfils, and the end of what is isolated."""
    make = FlowMaker(intent.id)
    when = match_class(_REGISTERS[intent.role], intent.class_id)
    _clauses(make, when, (*intent.clauses, *intent.names))
    if intent.isolated:
        assert intent.role in ("ingress", "egress"), intent.id
        table = TABLES["ingress" if intent.role == "ingress" else "egress", "default"]
        log = log_denied(f"C{intent.key}", intent.log)
        make.add(table, Priority.DROP, when, log, Table.POLICY_DENY)
    return Program(tuple(make.flows))


def log_denied(what: str, wanted: bool) -> tuple[Action, ...]:  # noqa: FBT001 - said by its name
    """
    A sample of these packets goes to the controller, as many as the meter lets through.

    `what`: `C<key of the policyclass intent>` or `R<conj_id>:<key of the policy intent>`.
    """
    if not wanted:
        return ()
    return (Controller(DENY_MAX_LEN, DENY_USERDATA + what.encode(), DENY_METER),)


def compile_port(intent: PolicyPortIntent) -> Program:
    """Which clauses a port fulfils, in both families."""
    make = FlowMaker(intent.id)
    for family in FAMILIES:
        fields: dict[str, int | tuple[int, int]] = {"eth_type": family.eth_type}
        if intent.protocol is not None:
            fields["nw_proto"] = PROTOCOL_NUMBERS[intent.protocol]
            if intent.mask:
                fields[f"{intent.protocol.lower()}_dst"] = (intent.value, intent.mask)
        _clauses(make, match(**fields), (*intent.clauses, *intent.names))
    return Program(tuple(make.flows))


def _clauses(make: FlowMaker, when: Match, clauses: Iterable[Clause]) -> None:
    """One flow for each table and priority, with all its conjunctions."""
    found: dict[tuple[Table, int], list[Conjunction]] = defaultdict(list)
    for clause in clauses:
        where = TABLES[clause.direction, clause.tier], clause.priority
        found[where].append(Conjunction(clause.conj_id, clause.number, clause.of))
    for (table, priority), actions in sorted(found.items()):
        unique = sorted(set(actions), key=lambda one: (one.conj_id, one.clause))
        make.add(table, priority, when, unique)


def compile_peer(intent: PolicyPeerIntent) -> Program:
    """As the destination of what leaves Pods here, and as the source of what comes to them."""
    make = FlowMaker(intent.id)
    for ip in dict.fromkeys(intent.ips):
        actions = set_class(PEER_REGS, intent.class_id)
        _both_ways(make, ip, PEER_TABLES, NETWORK_TABLES, Priority.EXACT, actions)
    return Program(tuple(make.flows))


def compile_network(intent: PolicyNetworkIntent) -> Program:
    """The same for a network, by longest prefix."""
    make = FlowMaker(intent.id)
    tiers: dict[PolicyDirection, Table] = {
        direction: TABLES[direction, "admin"] for direction in NETWORK_TABLES
    }
    priority = NETWORK_PRIORITY + intent.cidr.prefixlen
    actions = set_class(NETWORK_REGS, intent.class_id)
    _both_ways(make, intent.cidr, NETWORK_TABLES, tiers, priority, actions)
    return Program(tuple(make.flows))


def _both_ways(
    make: FlowMaker,
    who: IPAddress | IPNetwork,
    tables: dict[PolicyDirection, Table],
    following: dict[PolicyDirection, Table],
    priority: int,
    actions: tuple[Action, ...],
) -> None:
    family = family_of(who)
    for direction, table in tables.items():
        when = family.to(who) if direction == "egress" else family.from_(who)
        make.add(table, priority, when, actions, following[direction])
