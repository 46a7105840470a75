"""NetworkPolicies: not enforced yet, and said so of each of them."""

from dunlin.events.findings import Finding
from dunlin_planner.state import Plan, State


def plan_policy(state: State, namespace: str, name: str) -> Plan:
    """A finding instead of an intent."""
    if state.find("networkpolicy", namespace, name) is None:
        return Plan()
    finding = Finding(
        kind="NetworkPolicy",
        namespace=namespace,
        name=name,
        field="spec",
        severity="unsupported",
        reason="not enforced: all traffic is allowed",
    )
    return Plan(findings=(finding,))
