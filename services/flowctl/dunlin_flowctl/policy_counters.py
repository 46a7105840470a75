"""Counters of policies, out of the flows of one switch: by rule, and what isolation denied."""

from collections.abc import Mapping

from dunlin.events.intents import PolicyClassIntent, PolicyIntent, PolicyRule
from dunlin.model.ids import IntentId
from dunlin.openflow.messages import InstalledFlow
from dunlin.pipeline.policy_count import counted, denies_isolated
from dunlin_flowctl.core.desired import IntentVersion
from dunlin_flowctl.models import DeniedCounters, RuleCounters


class PolicySums:
    """
    Sums over flows as parts of a dump come in.

    `rules` by conjunction id: a rule has one for its numbers and some for each number of its named
    ports. What today's intents do not know (a rule that is on its way out) is left out.
    """

    def __init__(self, intents: Mapping[IntentId, IntentVersion]) -> None:
        self._intents = intents
        self._known: dict[IntentId, dict[int, PolicyRule]] = {}
        self._rules: dict[tuple[IntentId, int], RuleCounters] = {}
        self._denied: dict[IntentId, DeniedCounters] = {}

    @property
    def rules(self) -> list[RuleCounters]:
        """By policy, direction and rule."""
        key = lambda r: (r.intent, r.direction, r.rule, r.conj_id)  # noqa: E731 - only here
        return sorted(self._rules.values(), key=key)

    @property
    def denied(self) -> list[DeniedCounters]:
        """By who isolates."""
        return sorted(self._denied.values(), key=lambda d: (d.policies, d.direction, d.intent))

    def add(self, intent_id: IntentId, row: InstalledFlow) -> None:
        """One flow of a dump, whose cookie names this intent."""
        version = self._intents.get(intent_id)
        # While parts of a dump come in, intents go.
        match version.intent if version else None:
            case PolicyIntent() as policy:
                self._rule(policy, row)
            case PolicyClassIntent() as subjects if subjects.isolated:
                if denies_isolated(row.flow):
                    self._deny(subjects, row)

    def _rule(self, policy: PolicyIntent, row: InstalledFlow) -> None:
        found = counted(row.flow)
        if policy.id not in self._known:
            self._known[policy.id] = {rule.conj_id: rule for rule in policy.rules}
        rule = self._known[policy.id].get(found.conj_id) if found else None
        if found is None or rule is None:
            return
        total = self._rules.setdefault(
            (policy.id, rule.conj_id),
            RuleCounters(
                intent=policy.id,
                object=policy.object,
                conj_id=rule.conj_id,
                direction=rule.direction,
                rule=rule.index,
                name=rule.name,
                action=rule.action,
                packets=0,
                bytes=0,
                connections=0 if rule.action == "Accept" else None,
            ),
        )
        total.packets += row.packets
        total.bytes += row.bytes
        if found.first:
            total.connections = (total.connections or 0) + row.packets

    def _deny(self, subjects: PolicyClassIntent, row: InstalledFlow) -> None:
        total = self._denied.setdefault(
            subjects.id,
            DeniedCounters(
                intent=subjects.id,
                direction=subjects.role,
                policies=isolating(subjects),
                packets=0,
                bytes=0,
            ),
        )
        total.packets += row.packets
        total.bytes += row.bytes


def isolating(subjects: PolicyClassIntent) -> list[str]:
    """The NetworkPolicies that isolate these subjects: `<namespace>/<name>`, sorted."""
    # A ClusterNetworkPolicy has no namespace, and isolates nobody.
    return sorted(name for name in subjects.policies if not name.startswith("/"))
