"""What a flow of a policy counts: the inverse of `pipeline.policy`, for statistics."""

from typing import NamedTuple

from dunlin.openflow.flow import Conjunction, Flow
from dunlin.pipeline.layout import RULE_LABEL_MASK, Priority
from dunlin.pipeline.policy import METRICS, TABLES

_SHIFTS = {int(table): shift for table, _, shift in METRICS.values()}
_DEFAULTS = {int(TABLES[direction, "default"]) for direction in METRICS}


class Counted(NamedTuple):
    """Packets of a rule; `first`: the first one of each connection."""

    conj_id: int
    first: bool = False


def counted(flow: Flow) -> Counted | None:
    """Which rule a flow of a `policy` intent counts for; its flows never count a packet twice."""
    fields = {item.field: item for item in flow.match}
    if flow.table in _SHIFTS:
        label = fields.get("ct_label")
        return Counted(label.value >> _SHIFTS[flow.table] & RULE_LABEL_MASK) if label else None
    verdict = fields.get("conj_id")
    return Counted(verdict.value, "ct_mark" in fields) if verdict else None


def denies_isolated(flow: Flow) -> bool:
    """A flow of a `policyclass` intent that ends what is isolated and no rule allowed."""
    clauses = any(isinstance(action, Conjunction) for action in flow.actions)
    return flow.table in _DEFAULTS and flow.priority == Priority.DROP and not clauses
