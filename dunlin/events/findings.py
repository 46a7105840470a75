"""Why a plan is not all that objects ask for: findings from a pure core, not log lines."""

from typing import Literal, TypeAlias

from dunlin.events.facts import Event

Severity: TypeAlias = Literal["unsupported", "conflict", "waiting", "invalid"]


class Finding(Event, frozen=True, kw_only=True):
    """
    One field of one object that is not honoured.

    `severity`: unsupported (not built yet; the rest of the object works), conflict (another object
    holds it), waiting (a fact that must come is missing), invalid (makes no sense).
    `field`: as Kubernetes spells it, `spec.externalIPs`. `reason`: what happens instead.
    """

    kind: str
    namespace: str = ""
    name: str
    field: str
    severity: Severity
    reason: str

    @property
    def object(self) -> str:
        """`Service default/web`."""
        name = f"{self.namespace}/{self.name}" if self.namespace else self.name
        return f"{self.kind} {name}"
