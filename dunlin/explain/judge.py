"""What a packet met in the policy tables, in the names of Kubernetes objects. Pure."""

from collections.abc import Container, Iterator, Sequence
from dataclasses import replace

import msgspec

from dunlin.events.intents import (
    AnyIntent,
    PolicyClassIntent,
    PolicyDirection,
    PolicyIntent,
    intent_id,
)
from dunlin.explain.answer import Judgement, PolicyRef, RuleRef, Why
from dunlin.explain.world import World
from dunlin.openflow.cookie import cookie_of, kind_of_cookie
from dunlin.openflow.flow import Conjunction, Flow, Program
from dunlin.openflow.trace import Trace
from dunlin.pipeline.layout import Priority, Table
from dunlin.pipeline.policy import TABLES
from dunlin.pipeline.policy_count import counted
from dunlin.subjects import ALL_SCOPE

SUBJECTS: tuple[tuple[PolicyDirection, Table], ...] = (
    ("egress", Table.EGRESS_SUBJECT),
    ("ingress", Table.INGRESS_SUBJECT),
)


class Judge:
    """Reads traces of one node; `intents`: all that was compiled for it."""

    def __init__(self, world: World, node: str, intents: Sequence[AnyIntent]) -> None:
        self._world = world
        self._node = node
        self._owners = {cookie_of(intent.id): intent for intent in intents}
        mine = [i for i in intents if i.scope in (ALL_SCOPE, node)]
        newest = world.newest([world.switches[node], *mine])
        self._in_force = world.held.get(node, newest) >= newest

    def judgements(self, trace: Trace) -> Iterator[Judgement]:
        """Egress, then ingress, as far as the packet came."""
        for direction, table in SUBJECTS:
            subject = next((flow for flow in trace.flows if flow.table == table), None)
            if subject is not None:
                yield self._judgement(direction, subject, self._verdicts(direction, trace))

    def _verdicts(self, direction: PolicyDirection, trace: Trace) -> list[Flow]:
        """What it met in a direction's tables, without what is there on a switch of no policy."""
        tables = {int(table) for (way, _), table in TABLES.items() if way == direction}
        met = [flow for flow in trace.flows if flow.table in tables]
        return [flow for flow in met if kind_of_cookie(flow.cookie) != "switch"]

    def _judgement(
        self, direction: PolicyDirection, subject: Flow, verdicts: list[Flow]
    ) -> Judgement:
        base = Judgement(direction, self._node, True, _unjudged(subject), in_force=self._in_force)
        if subject.goto is None:
            return replace(base, allowed=False, why="fenced")
        passed: tuple[RuleRef, ...] = ()
        for flow in verdicts:
            owner = self._owners[flow.cookie]
            if isinstance(owner, PolicyClassIntent):
                names = self.isolating(owner)
                return replace(
                    base, allowed=False, why="isolated", passed=passed, isolated_by=names
                )
            rule = self._rule(flow, owner)
            if rule.action != "Pass":
                allowed = rule.action == "Accept"
                return replace(base, allowed=allowed, why="rule", rules=(rule,), passed=passed)
            passed = (*passed, rule)
        return replace(base, passed=passed)

    def isolating(self, subjects: PolicyClassIntent) -> tuple[PolicyRef, ...]:
        """The NetworkPolicies that isolate these subjects."""
        names = (name.split("/", 1) for name in sorted(subjects.policies))
        return tuple(self._policy(namespace, name) for namespace, name in names if namespace)

    def _rule(self, flow: Flow, owner: AnyIntent) -> RuleRef:
        assert isinstance(owner, PolicyIntent), owner.id
        found = counted(flow)
        assert found is not None, flow
        rule = next(rule for rule in owner.rules if rule.conj_id == found.conj_id)
        namespace, name = owner.key.split("/", 1)
        policy = self._policy(namespace, name)
        return RuleRef(policy, owner.tier, rule.direction, rule.index, rule.name, rule.action)

    def _policy(self, namespace: str, name: str) -> PolicyRef:
        kind = "NetworkPolicy" if namespace else "ClusterNetworkPolicy"
        revision = self._world.revisions.get(
            intent_id(ALL_SCOPE, "policy", f"{namespace}/{name}"), 0
        )
        return PolicyRef(kind, namespace, name, revision)

    def deciding(self, trace: Trace, direction: PolicyDirection) -> int | None:
        """The conjunction of a NetworkPolicy that allowed this packet."""
        for flow in trace.flows:
            rule = counted(flow)
            if rule is not None and flow.table == TABLES[direction, "default"]:
                return rule.conj_id
        return None


def _unjudged(subject: Flow) -> Why:
    """Why no policy has a say, if none has."""
    if kind_of_cookie(subject.cookie) != "switch":
        return "not selected"
    return "own node" if subject.priority == Priority.GUARD else "not a Pod"


def without(program: Program, conj_ids: Container[int]) -> Program:
    """The program as if these rules were not there."""
    flows = []
    for flow in program.flows:
        rule = counted(flow)
        if rule is not None and rule.conj_id in conj_ids:
            continue
        kept = tuple(
            a for a in flow.actions if not (isinstance(a, Conjunction) and a.conj_id in conj_ids)
        )
        if kept == flow.actions:
            flows.append(flow)
        elif kept:
            # A clause flow without any clause would drop.
            flows.append(msgspec.structs.replace(flow, actions=kept))
    return Program(tuple(flows), program.groups)
