"""What `explain` answers: shapes only, for REST, the command line and tests."""

from dataclasses import dataclass
from typing import Literal

Verdict = Literal["ALLOWED", "DENIED", "UNREACHABLE", "MIXED"]
"""
ALLOWED: policy lets it pass, and it arrives. DENIED: by policy. UNREACHABLE: policy says nothing
against it, but it does not arrive. MIXED: not the same for all addresses or endpoints.
"""

Why = Literal["rule", "isolated", "not selected", "not a Pod", "own node", "itself", "fenced"]
"""
rule: the first of `rules` decided. isolated: `isolated_by` select the Pod and no rule allowed it.
not selected: no policy has a say. not a Pod: this end is none here. own node: a Pod and its node
always reach each other. itself: a Pod's traffic with itself is not judged. fenced: a Pod whose
policies are not known yet.
"""


@dataclass(frozen=True, slots=True)
class PolicyRef:
    """A policy and the revision of its intent; `namespace` "": a ClusterNetworkPolicy."""

    kind: str
    namespace: str
    name: str
    revision: int

    @property
    def text(self) -> str:
        """`NetworkPolicy shop/web`."""
        return f"{self.kind} {self.namespace}/{self.name}".replace(" /", " ")


@dataclass(frozen=True, slots=True)
class RuleRef:
    """One rule; `rule` counts from 0 in its direction, as the object lists them."""

    policy: PolicyRef
    tier: str
    direction: str
    rule: int
    name: str
    action: str

    @property
    def text(self) -> str:
        """`NetworkPolicy shop/web, ingress rule 0`."""
        name = f" ({self.name})" if self.name else ""
        return f"{self.policy.text}, {self.direction} rule {self.rule}{name}"


@dataclass(frozen=True, slots=True)
class Judgement:
    """
    One direction at one Pod.

    `rules`: what decided; of equal rules all that allow it (at most 16). `passed`: rules that left
    it to the next tier. `in_force`: the node's switch holds all that this says.
    """

    direction: Literal["egress", "ingress"]
    node: str
    allowed: bool
    why: Why
    rules: tuple[RuleRef, ...] = ()
    passed: tuple[RuleRef, ...] = ()
    isolated_by: tuple[PolicyRef, ...] = ()
    in_force: bool = True


@dataclass(frozen=True, slots=True)
class End:
    """Where a packet begins or ends; `kind`: pod, node or address. `name` "" for an address."""

    kind: Literal["pod", "node", "address"]
    name: str
    node: str
    ip: str

    @property
    def text(self) -> str:
        """`pod shop/web-1 (10.0.0.7)`."""
        return f"{self.kind} {self.name} ({self.ip})" if self.name else self.ip


@dataclass(frozen=True, slots=True)
class Path:
    """
    One source address, one destination address.

    `asked`: what was connected to; for a Service `destination` is one of its endpoints. `port`: of
    the destination, 0 for ICMP.
    """

    source: End
    asked: str
    destination: End
    port: int
    verdict: Verdict
    reason: str
    judgements: tuple[Judgement, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """All paths; `complete` False: a Service has more endpoints than are shown."""

    source: str
    destination: str
    port: str
    verdict: Verdict
    paths: tuple[Path, ...]
    complete: bool = True


def overall(verdicts: list[Verdict]) -> Verdict:
    """What holds for all of them."""
    found = set(verdicts)
    return found.pop() if len(found) == 1 else "MIXED"
