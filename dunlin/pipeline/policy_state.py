"""The ways into and out of the policy tables: subjects, fences, and connections judged again."""

from dunlin.events.intents import PolicyGenerationIntent, PolicySubjectIntent
from dunlin.openflow.fields import IP_SCTP
from dunlin.openflow.flow import Ct, Match, Move, Program, match, set_field, with_fields
from dunlin.pipeline.base import FlowMaker, SwitchContext, with_own_replies
from dunlin.pipeline.families import FAMILIES, Family, family_of
from dunlin.pipeline.layout import (
    DENIED,
    GENERATION_MASK,
    GENERATION_SHIFT,
    NETWORK_REGS,
    PEER_REGS,
    RULES_LABEL_BITS,
    RULES_XXREG,
    SNAT_MARK,
    SUBJECT_REGS,
    Priority,
    Table,
    Zone,
)
from dunlin.pipeline.policy import (
    AFTER,
    AFTER_METRIC,
    METRICS,
    NETWORK_TABLES,
    PEER_TABLES,
    TABLES,
    set_class,
)


def policy_base(make: FlowMaker, context: SwitchContext) -> None:
    """The policy tables of a switch without policies: everything passes, but for fenced Pods."""
    for family in FAMILIES:
        make.add(Table.EGRESS_SUBJECT, Priority.MISS, family.any, (), Table.INGRESS_SUBJECT)
        make.add(Table.INGRESS_SUBJECT, Priority.MISS, family.any, (), Table.COMMIT)
        for direction, after in AFTER.items():
            admin = TABLES[direction, "admin"]
            default, baseline = TABLES[direction, "default"], TABLES[direction, "baseline"]
            nobody, nowhere = set_class(PEER_REGS, 0), set_class(NETWORK_REGS, 0)
            peers, networks = PEER_TABLES[direction], NETWORK_TABLES[direction]
            make.add(peers, Priority.MISS, family.any, nobody, networks)
            make.add(networks, Priority.MISS, family.any, nowhere, admin)
            make.add(admin, Priority.MISS, family.any, (), default)
            make.add(default, Priority.MISS, family.any, (), baseline)
            make.add(baseline, Priority.MISS, family.any, (), after)
        make.add(Table.POLICY_DENY, Priority.MISS, family.any)
        for direction, (metric, _, _) in METRICS.items():
            make.add(metric, Priority.MISS, family.any, (), AFTER_METRIC[direction])
    for ip in context.own_addresses:
        # Kubernetes: a Pod and its own node always reach each other.
        family = family_of(ip)
        make.add(Table.EGRESS_SUBJECT, Priority.GUARD, family.to(ip), (), Table.INGRESS_SUBJECT)
        node = with_fields(match(in_port=context.switch.gateway_port), family.from_(ip))
        make.add(Table.INGRESS_SUBJECT, Priority.GUARD, node, (), Table.COMMIT)


def compile_subject(intent: PolicySubjectIntent) -> Program:
    """Lifts the fence; a Pod that no policy selects in a direction skips its tables."""
    make = FlowMaker(intent.id)
    for ip in dict.fromkeys(intent.ips):
        family = family_of(ip)
        for class_id, table, when, peers, skip in (
            (
                intent.egress_class,
                Table.EGRESS_SUBJECT,
                family.from_(ip),
                Table.EGRESS_PEER,
                Table.INGRESS_SUBJECT,
            ),
            (
                intent.ingress_class,
                Table.INGRESS_SUBJECT,
                family.to(ip),
                Table.INGRESS_PEER,
                Table.COMMIT,
            ),
        ):
            if class_id:
                make.add(table, Priority.EXACT, when, set_class(SUBJECT_REGS, class_id), peers)
            else:
                make.add(table, Priority.EXACT, when, (), skip)
    return Program(tuple(make.flows))


def compile_generation(intent: PolicyGenerationIntent) -> Program:
    """
    Every connection carries the generation that allowed it; one of another is judged again.

    Only packets of the original direction can be judged: replies are translated back already.
    What is denied then is marked, and its replies end too. SCTP is judged packet by packet: before
    3.2 Open vSwitch's conntrack knows all associations of two addresses as one.
    """
    make = FlowMaker(intent.id)
    current = intent.generation << GENERATION_SHIFT
    allowed = (current, GENERATION_MASK | DENIED.mask)
    for family in FAMILIES:
        _established(make, family, allowed)
        note = (set_field("ct_mark", allowed), Move(RULES_XXREG, "ct_label", RULES_LABEL_BITS))
        commit = Ct(Zone.MAIN, commit=True, table=Table.L3_FORWARD, exec=note)
        make.add(Table.COMMIT, Priority.GUARD, family.any, (commit,))
        direct, first = with_own_replies(family, commit)
        make.add(Table.COMMIT, Priority.GUARD + 1, direct, (first,))
        snat = with_fields(family.any, match(ct_mark=SNAT_MARK.pair))
        # Without recirculation: Open vSwitch drops what does it more than six times, and a client
        # from outside of an endpoint elsewhere has done so five times.
        onward = Ct(Zone.MAIN, commit=True, exec=note)
        make.add(Table.COMMIT, Priority.GUARD + 5, snat, (onward,), Table.SERVICE_SNAT)
        deny = Ct(Zone.MAIN, commit=True, exec=(set_field("ct_mark", DENIED.pair),))
        known = with_fields(family.any, match(ct_state="+trk+est"))
        make.add(Table.POLICY_DENY, Priority.DEFAULT, known, (deny,))
    return Program(tuple(make.flows))


def _established(make: FlowMaker, family: Family, allowed: tuple[int, int]) -> None:
    def known(state: str, **fields: int | tuple[int, int]) -> Match:
        return with_fields(family.any, match(ct_state=state, **fields))

    table, first = Table.CONNTRACK_STATE, Priority.LOCAL
    again = known("+trk+est-rpl", nw_proto=IP_SCTP)
    make.add(table, first + 4, again, (), Table.EGRESS_SUBJECT)
    make.add(table, first + 3, known("+trk+est+rpl", ct_mark=DENIED.pair))
    snat = (allowed[0] | SNAT_MARK.value, allowed[1] | SNAT_MARK.mask)
    make.add(table, first + 3, known("+trk+est-rpl", ct_mark=snat), (), Table.SERVICE_SNAT)
    make.add(table, first + 2, known("+trk+est-rpl", ct_mark=allowed), (), Table.EGRESS_METRIC)
    make.add(table, first + 1, known("+trk+est-rpl"), (), Table.EGRESS_SUBJECT)
