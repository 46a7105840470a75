"""Label and field selectors: parse, match. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dunlin_lab.apiserver.errors import bad_request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dunlin_lab.apiserver.resources import Resource
    from dunlin_lab.apiserver.values import Obj

Operator = Literal["in", "notin", "exists", "absent"]

_KEY = r"[A-Za-z0-9./_-]+"
_TERM = re.compile(
    rf"\s*(?:(?P<absent>!)\s*(?P<akey>{_KEY})"
    rf"|(?P<skey>{_KEY})\s+(?P<sop>in|notin)\s*\((?P<set>[^()]*)\)"
    rf"|(?P<ekey>{_KEY})\s*(?P<eop>==|!=|=)\s*(?P<value>[A-Za-z0-9._-]*)"
    rf"|(?P<key>{_KEY}))\s*(?:,|$)"
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One term of a label selector."""

    key: str
    operator: Operator
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether labels satisfy this term; an absent key satisfies `notin`."""
        match self.operator:
            case "in":
                return labels.get(self.key) in self.values if self.key in labels else False
            case "notin":
                return labels.get(self.key) not in self.values
            case "exists":
                return self.key in labels
            case "absent":
                return self.key not in labels

    def __str__(self) -> str:
        """Render as kubectl writes it."""
        values = ",".join(sorted(self.values))
        match self.operator:
            case "in":
                single = len(self.values) == 1
                return f"{self.key}={values}" if single else f"{self.key} in ({values})"
            case "notin":
                return f"{self.key} notin ({values})"
            case "exists":
                return self.key
            case "absent":
                return f"!{self.key}"


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """All terms must hold; no terms select everything."""

    requirements: tuple[Requirement, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether all terms hold."""
        return all(requirement.matches(labels) for requirement in self.requirements)

    def __str__(self) -> str:
        """Render as kubectl writes it."""
        return ",".join(str(requirement) for requirement in self.requirements)


def _requirement(found: re.Match[str]) -> Requirement:
    if found["absent"]:
        return Requirement(found["akey"], "absent")
    if found["skey"]:
        values = frozenset(value.strip() for value in found["set"].split(","))
        return Requirement(found["skey"], "in" if found["sop"] == "in" else "notin", values)
    if found["ekey"]:
        operator: Operator = "notin" if found["eop"] == "!=" else "in"
        return Requirement(found["ekey"], operator, frozenset((found["value"],)))
    return Requirement(found["key"], "exists")


def parse_labels(text: str) -> LabelSelector:
    """
    Parse `a=b,c!=d,e in (f,g),h notin (i),j,!k`.

    Raises:
        ApiError: 400.
    """
    requirements: list[Requirement] = []
    position = 0
    while position < len(text):
        found = _TERM.match(text, position)
        if found is None:
            message = f"unable to parse requirement: found {text[position:]!r}, expected a selector"
            raise bad_request(message)
        requirements.append(_requirement(found))
        position = found.end()
    return LabelSelector(tuple(requirements))


_OPERATORS: dict[str, Operator] = {
    "In": "in",
    "NotIn": "notin",
    "Exists": "exists",
    "DoesNotExist": "absent",
}


def from_object(selector: Obj | None) -> LabelSelector:
    """Read a metav1.LabelSelector; a term that validation would refuse selects nothing."""
    found = selector or {}
    terms = [
        Requirement(key, "in", frozenset((value,)))
        for key, value in sorted((found.get("matchLabels") or {}).items())
    ]
    for term in found.get("matchExpressions") or ():
        operator = _OPERATORS.get(term.get("operator", ""))
        values = frozenset(term.get("values") or ()) if operator is not None else frozenset()
        terms.append(Requirement(term.get("key", ""), operator or "in", values))
    return LabelSelector(tuple(terms))


def read_field(obj: Obj, path: str) -> str:
    """Render the value at a dotted path as field selectors compare it; absent is empty."""
    value: Any = obj
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if value is None:
        return "false" if path in ("spec.unschedulable", "spec.hostNetwork") else ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):  # an Event's `source` selects by its component
        return str(value.get("component", ""))
    return str(value)


@dataclass(frozen=True, slots=True)
class FieldSelector:
    """Terms (path, value, equal) that must all hold."""

    terms: tuple[tuple[str, str, bool], ...] = ()

    def matches(self, obj: Obj) -> bool:
        """Whether all terms hold."""
        return all((read_field(obj, path) == value) is equal for path, value, equal in self.terms)


def parse_fields(text: str, resource: Resource) -> FieldSelector:
    """
    Parse `metadata.name=a,status.phase!=Failed`.

    Raises:
        ApiError: 400, also for a field this kind cannot be selected by.
    """
    terms: list[tuple[str, str, bool]] = []
    for term in filter(None, text.split(",")):
        found = re.fullmatch(r"\s*([^=!\s]+)\s*(==|!=|=)\s*(.*)", term)
        if found is None:
            message = f"invalid selector: '{term}'; can't understand '{term}'"
            raise bad_request(message)
        path, operator, value = found.groups()
        known = ("metadata.name", *(("metadata.namespace",) if resource.namespaced else ()))
        if path not in known and path not in resource.fields:
            message = f'"{path}" is not a known field selector: only "metadata.name", '
            message += ", ".join(f'"{name}"' for name in ("metadata.namespace", *resource.fields))
            raise bad_request(f"field label not supported: {path} ({message})")
        terms.append((path, value.strip(), operator != "!="))
    return FieldSelector(tuple(terms))
