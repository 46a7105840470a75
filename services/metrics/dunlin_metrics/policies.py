"""What policies allowed and denied, for REST, the page and Prometheus. Pure."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from prometheus_client.core import CounterMetricFamily, Metric

from dunlin.events.intents import PolicyIntent
from dunlin_metrics.meter import Target, Total
from dunlin_metrics.samples import DENIED_FIELDS, RULE_FIELDS
from dunlin_metrics.state import State

RULE_LABELS = ("namespace", "policy", "direction", "rule", "action")
DENIED_LABELS = ("namespace", "policies", "direction", "rule")
OTHER = "_other"
"""Label of what has no series of its own: names of Kubernetes objects have no `_`."""


def policies(state: State, namespace: str | None = None) -> dict[str, Any]:
    """Each policy with its rules, and what was denied; `namespace` "": cluster-wide ones."""
    rules: dict[str, dict[Target, Total | None]] = {}
    for intent in state.policies.values():
        rules[intent.key] = dict.fromkeys(_targets(intent))
    for target, total in state.meter.of("rule"):
        rules.setdefault(target[1], {})[target] = total
    known = {intent.key: intent for intent in state.policies.values()}
    return {
        "items": [
            _policy(key, known.get(key), found)
            for key, found in sorted(rules.items())
            if namespace is None or key.split("/", 1)[0] == namespace
        ],
        "denied": sorted(
            _denied(state, namespace), key=lambda row: (-row["packets"], row["policies"])
        ),
    }


def _targets(intent: PolicyIntent) -> Iterator[Target]:
    for rule in intent.rules:
        yield ("rule", intent.key, rule.direction, str(rule.index), rule.action, rule.name)


def _policy(
    key: str, intent: PolicyIntent | None, rules: dict[Target, Total | None]
) -> dict[str, Any]:
    namespace, name = key.split("/", 1)
    return {
        "kind": "NetworkPolicy" if namespace else "ClusterNetworkPolicy",
        "namespace": namespace,
        "name": name,
        "tier": intent.tier if intent else "",
        "exists": intent is not None,
        "rules": [
            {
                "direction": target[2],
                "rule": int(target[3]),
                "name": target[5],
                "action": target[4],
                **_numbers(RULE_FIELDS, total),
            }
            for target, total in sorted(rules.items(), key=lambda item: _rule_order(item[0]))
        ],
    }


def _rule_order(target: Target) -> tuple[str, int, Target]:
    return (target[2], int(target[3]), target)


def _numbers(fields: tuple[str, ...], total: Total | None) -> dict[str, float]:
    values = total.values if total else [0] * len(fields)
    rates = total.per_second if total else [0.0] * len(fields)
    per_second = {f"{field}_per_s": rate for field, rate in zip(fields, rates, strict=True)}
    return dict(zip(fields, values, strict=True)) | per_second


def _denied(state: State, namespace: str | None) -> Iterator[dict[str, Any]]:
    """By isolation (`rule` None), and by rules that deny; only where something was denied."""
    for target, total in state.meter.of("denied"):
        names = list(target[2:])
        where = names[0].split("/", 1)[0] if names else ""
        if namespace in (None, where) and total.values[0]:
            yield {
                "namespace": where,
                "policies": names,
                "direction": target[1],
                "rule": None,
                **_numbers(DENIED_FIELDS, total),
            }
    for target, total in _denying(state):
        if namespace in (None, "") and total.values[0]:
            yield {
                "namespace": "",
                "policies": [target[1].lstrip("/")],
                "direction": target[2],
                "rule": int(target[3]),
                **_numbers(DENIED_FIELDS, _part(total)),
            }


def _denying(state: State) -> Iterator[tuple[Target, Total]]:
    return ((t, total) for t, total in state.meter.of("rule") if t[4] == "Deny")


def _part(total: Total) -> Total:
    """A rule's packets and bytes."""
    size = len(DENIED_FIELDS)
    return Total(total.values[:size], total.seen_ms, total.per_second[:size])


# --- Prometheus -----------------------------------------------------------------------------------


def collect(state: State, series_max: int) -> Iterator[Metric]:
    """
    Counters by rule, and by who isolates; at most `series_max` label sets of each.

    The rest is summed under `_other`: a cluster with many policies must not end Prometheus.
    """
    rules = ((_rule_labels(target), total.values) for target, total in state.meter.of("rule"))
    yield from _families(
        "rule",
        RULE_FIELDS,
        RULE_LABELS,
        bounded(rules, series_max, (OTHER, OTHER, "", "", "")),
        "of connections that this rule allowed (of packets that it decided about: Deny, Pass)",
    )
    denied = [(_denied_labels(target), total.values) for target, total in state.meter.of("denied")]
    denied += [(_deny_labels(t), total.values[:2]) for t, total in _denying(state)]
    yield from _families(
        "denied",
        DENIED_FIELDS,
        DENIED_LABELS,
        bounded(denied, series_max, (OTHER, OTHER, "", "")),
        "that these policies isolate from and no rule allowed, or that this rule denies",
    )


Series = dict[tuple[str, ...], list[int]]


def bounded(
    found: Iterable[tuple[tuple[str, ...], list[int]]], most: int, other: tuple[str, ...]
) -> Series:
    """The first `most` label sets as they are, the sum of the others as `other`."""
    sums: Series = {}
    for labels, values in found:
        known = sums.get(labels)
        sums[labels] = [a + b for a, b in zip(known, values, strict=True)] if known else values
    if len(sums) <= most:
        return sums
    kept = dict(islice(sums.items(), most))
    rest = list(islice(sums.values(), most, None))
    return kept | {other: [sum(column) for column in zip(*rest, strict=True)]}


def _families(
    kind: str, fields: tuple[str, ...], labels: tuple[str, ...], series: Series, what: str
) -> Iterator[Metric]:
    for index, field in enumerate(fields):
        family = CounterMetricFamily(
            f"dunlin_networkpolicy_{kind}_{field}", f"{field.title()} {what}.", labels=labels
        )
        for values, numbers in series.items():
            family.add_metric(values, numbers[index])
        yield family


def _rule_labels(target: Target) -> tuple[str, ...]:
    """Two rules at one index that differ in name alone are one series."""
    namespace, name = target[1].split("/", 1)
    return (namespace, name, target[2], target[3], target[4])


def _denied_labels(target: Target) -> tuple[str, ...]:
    namespace = target[2].split("/", 1)[0] if len(target) > 2 else ""
    names = (name.split("/", 1)[1] for name in target[2:])
    return (namespace, ",".join(names), target[1], "")


def _deny_labels(target: Target) -> tuple[str, ...]:
    return ("", target[1].lstrip("/"), target[2], target[3])
