"""Manifests, as `kubectl apply` takes them, to events; a fault is named by its field."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from dunlin.events.facts import (
    ClusterNetworkPolicyFact,
    ContainerPort,
    Fact,
    NamespaceFact,
    NetworkPolicyFact,
    PodFact,
)
from dunlin_planner.core.events import Deleted, Event, Upserted
from dunlin_planner.core.policy.groups import NAMESPACE_LABEL
from dunlin_planner.core.policy.parse import parse_policy
from dunlin_planner.core.policy.parse_cluster import parse_cluster_policy

Find = Callable[[str, str, str], Fact | None]
"""The newest fact of an object: kind, namespace ("" for none), name."""

KINDS = {
    ("networking.k8s.io/v1", "NetworkPolicy"): "networkpolicy",
    ("policy.networking.k8s.io/v1alpha2", "ClusterNetworkPolicy"): "clusternetworkpolicy",
    ("v1", "Pod"): "pod",
    ("v1", "Namespace"): "namespace",
}
NAMESPACED = frozenset({"networkpolicy", "pod"})
DELETABLE = frozenset({"networkpolicy", "clusternetworkpolicy"})
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
LABEL_VALUE = re.compile(r"(([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9])?")
LABEL_KEY = re.compile(r"([a-z0-9.-]{1,253}/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True, slots=True)
class Problem:
    """A field of a manifest that cannot be planned with. `object`: `NetworkPolicy shop/deny`."""

    object: str
    field: str
    reason: str


class _Bad(Exception):
    def __init__(self, field_: str, reason: str) -> None:
        super().__init__(field_, reason)
        self.field, self.reason = field_, reason


@dataclass(slots=True)
class Change:
    """What manifests ask for: `actions` are (object, create | replace | delete | unchanged)."""

    events: list[Event] = field(default_factory=list)
    actions: list[tuple[str, str]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def read(manifests: Sequence[Any], find: Find, *, delete: bool) -> Change:
    """Every object, in order; a `List` is its items. Objects with problems give no event."""
    change = Change()
    later: dict[tuple[str, str, str], Fact | None] = {}

    def find_now(kind: str, namespace: str, name: str) -> Fact | None:
        key = (kind, namespace, name)
        return later[key] if key in later else find(*key)

    for number, manifest in enumerate(_flat(manifests)):
        _read_one(change, later, (number, manifest), find_now, delete)
    return change


def _flat(manifests: Sequence[Any]) -> list[Any]:
    found = []
    for manifest in manifests:
        if isinstance(manifest, Mapping) and str(manifest.get("kind", "")).endswith("List"):
            items = manifest.get("items")
            found += list(items) if isinstance(items, list) else [manifest]
        elif manifest is not None:
            found.append(manifest)
    return found


def _read_one(
    change: Change,
    later: dict[tuple[str, str, str], Fact | None],
    numbered: tuple[int, Any],
    find: Find,
    delete: bool,  # noqa: FBT001
) -> None:
    number, manifest = numbered
    shown = f"object {number + 1}"
    try:
        kind, namespace, name, shown = _identity(manifest, shown)
        old = find(kind, namespace, name)
        new = None if delete else _fact(kind, namespace, name, manifest, find)
        if delete:
            _may_delete(kind, old)
    except _Bad as bad:
        change.problems.append(Problem(shown, bad.field, bad.reason))
        return
    faults = _faults(new)
    if faults:
        change.problems += [Problem(shown, name_, reason) for name_, reason in faults]
        return
    later[kind, namespace, name] = new
    text = "/".join(part for part in (kind, namespace, name) if part)
    if new is None:
        change.events.append(Deleted(kind, namespace, name))
        change.actions.append((text, "delete"))
    elif old is not None and _said(old) == _said(new):
        change.actions.append((text, "unchanged"))
    else:
        change.events.append(Upserted(new))  # type: ignore[arg-type]
        change.actions.append((text, "replace" if old is not None else "create"))


def _said(fact: Fact) -> object:
    """What of an object matters here; specs by value, not by how they are written."""
    match fact:
        case NetworkPolicyFact() | ClusterNetworkPolicyFact():
            return msgspec.json.decode(fact.spec)
        case PodFact():
            return fact.labels, fact.ports
        case NamespaceFact():
            return fact.labels
    return fact


def _identity(manifest: Any, shown: str) -> tuple[str, str, str, str]:
    if not isinstance(manifest, Mapping):
        raise _Bad("object", f"is no object but {type(manifest).__name__}")
    version, word = str(manifest.get("apiVersion", "")), str(manifest.get("kind", ""))
    meta = manifest.get("metadata")
    if not isinstance(meta, Mapping) or not isinstance(meta.get("name"), str):
        raise _Bad("metadata.name", f"is missing ({word or 'no kind'}, {shown})")
    kind = KINDS.get((version, word))
    if kind is None:
        known = ", ".join(f"{v} {k}" for v, k in KINDS)
        raise _Bad(
            "kind",
            f"{version or 'no apiVersion'} {word or 'no kind'} cannot be planned: {known} can",
        )
    namespace = meta.get("namespace") or "default" if kind in NAMESPACED else ""
    name = meta["name"]
    for what, value in (("name", name), ("namespace", namespace)):
        if value and not (isinstance(value, str) and NAME.fullmatch(value)):
            raise _Bad(f"metadata.{what}", f"{value!r} is no DNS name")
    return kind, namespace, name, f"{word} {namespace}/{name}" if namespace else f"{word} {name}"


def _may_delete(kind: str, old: Fact | None) -> None:
    if kind not in DELETABLE:
        raise _Bad("kind", "only policies can be planned to be deleted")
    if old is None:
        raise _Bad("metadata.name", "there is no such object")


def _fact(kind: str, namespace: str, name: str, manifest: Mapping[str, Any], find: Find) -> Fact:
    old = find(kind, namespace, name)
    if kind == "namespace":
        labels = {**_labels(manifest), NAMESPACE_LABEL: name}
        kept = old if isinstance(old, NamespaceFact) else NamespaceFact(name=name)
        return msgspec.structs.replace(kept, labels=labels)
    if kind == "pod":
        if not isinstance(old, PodFact):
            raise _Bad("metadata.name", "no such Pod: only changes of Pods that exist are planned")
        return msgspec.structs.replace(old, labels=_labels(manifest), ports=_ports(manifest, old))
    if namespace and find("namespace", "", namespace) is None:
        raise _Bad("metadata.namespace", f"there is no namespace {namespace}")
    if not isinstance(manifest.get("spec"), Mapping):
        raise _Bad("spec", "is missing")
    spec = msgspec.Raw(msgspec.json.encode(manifest["spec"]))
    # What is logged changes nobody's reachability: that stays as it is.
    log = isinstance(old, NetworkPolicyFact | ClusterNetworkPolicyFact) and old.log_denied
    if namespace:
        return NetworkPolicyFact(namespace=namespace, name=name, spec=spec, log_denied=log)
    return ClusterNetworkPolicyFact(name=name, spec=spec, log_denied=log)


def _labels(manifest: Mapping[str, Any]) -> dict[str, str]:
    labels = manifest["metadata"].get("labels") or {}
    if not isinstance(labels, Mapping):
        raise _Bad("metadata.labels", "is no map")
    for key, value in labels.items():
        if not (isinstance(key, str) and LABEL_KEY.fullmatch(key)):
            raise _Bad("metadata.labels", f"{key!r} is no name of a label")
        if not (isinstance(value, str) and LABEL_VALUE.fullmatch(value)):
            raise _Bad(f"metadata.labels[{key}]", f"{value!r} is no value of a label")
    return dict(labels)


def _ports(manifest: Mapping[str, Any], old: PodFact) -> tuple[ContainerPort, ...]:
    """Of its containers; a manifest without any changes labels only."""
    spec = manifest.get("spec")
    containers = spec.get("containers") if isinstance(spec, Mapping) else None
    if not containers:
        return old.ports
    if not isinstance(containers, list):
        raise _Bad("spec.containers", "is no list")
    found: list[ContainerPort] = []
    for at, container in enumerate(containers):
        where = f"spec.containers[{at}]"
        if not isinstance(container, Mapping):
            raise _Bad(where, "is no object")
        try:
            found += msgspec.convert(
                [_port(port) for port in container.get("ports") or ()], list[ContainerPort]
            )
        except (msgspec.ValidationError, KeyError, TypeError, AttributeError) as error:
            raise _Bad(f"{where}.ports", f"cannot be read: {error}") from error
    return tuple(found)


def _port(port: Mapping[str, Any]) -> dict[str, Any]:
    """A ContainerPort in the words of facts."""
    return {
        "name": port.get("name") or "",
        "protocol": port.get("protocol") or "TCP",
        "port": port["containerPort"],
    }


def _faults(fact: Fact | None) -> list[tuple[str, str]]:
    match fact:
        case NetworkPolicyFact():
            _, faults = parse_policy(fact.namespace, fact.name, bytes(fact.spec))
        case ClusterNetworkPolicyFact():
            _, faults = parse_cluster_policy(fact.name, bytes(fact.spec))
        case _:
            return []
    return [(fault.field, fault.reason) for fault in faults]
