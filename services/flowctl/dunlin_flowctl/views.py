"""What REST shows of flowctl, as models."""

from collections.abc import Iterable

from dunlin import wire
from dunlin.events.facts import kind_of
from dunlin.events.rpc import WaitReply
from dunlin.events.state import Applied
from dunlin.model.ids import IntentId, format_dpid
from dunlin.openflow.cookie import cookie_of, kind_of_cookie
from dunlin.openflow.flow import Flow, Group
from dunlin.openflow.messages import InstalledFlow
from dunlin.openflow.render import Names, actions_text, match_text
from dunlin.pipeline.layout import Table
from dunlin.subjects import ALL_SCOPE
from dunlin_flowctl.core.cookies import CookiesOn
from dunlin_flowctl.core.desired import Desired, IntentVersion
from dunlin_flowctl.handles import Handles
from dunlin_flowctl.models import (
    AppliedErrorModel,
    BucketModel,
    FlowModel,
    GroupModel,
    IntentDetail,
    IntentModel,
    IntentOnSwitch,
    MissingModel,
    SwitchModel,
    SwitchWaitModel,
    WaitModel,
)

LACKING_MAX = 100
NAMES = Names({int(table): table.title for table in Table})


def object_of(desired: Desired, intent_id: str) -> str:
    """The Kubernetes object behind an intent; "" where not known."""
    version = desired.intents.get(IntentId(intent_id))
    return version.intent.object if version is not None else ""


def node_names(handles: Handles) -> list[str]:
    """Every switch that something is known of, sorted."""
    return sorted({*handles.desired.nodes(), *handles.facts, *handles.applied})


def newest(handles: Handles, node: str) -> Applied | None:
    """What is known best: this replica's own switch now, else what its owner published."""
    runner = handles.runners.get(node)
    return runner.applied() if runner is not None else handles.applied.get(node)


def switch_model(handles: Handles, node: str) -> SwitchModel:
    """One switch."""
    applied = newest(handles, node)
    intent, fact = handles.desired.switch_intent(node), handles.facts.get(node)
    dpid = intent.dpid if intent else fact.dpid if fact else applied.dpid if applied else 0
    session = handles.sessions.get(dpid)
    return SwitchModel(
        node=node,
        dpid=format_dpid(dpid),
        connected=applied.connected if applied else False,
        revision=applied.revision if applied else 0,
        epoch=applied.epoch if applied else "",
        flows=applied.flows if applied else 0,
        groups=applied.groups if applied else 0,
        pending=applied.pending if applied else 0,
        errors=[
            AppliedErrorModel(
                intent=error.intent,
                object=object_of(handles.desired, error.intent),
                revision=error.revision,
                reason=error.reason,
            )
            for error in (applied.errors if applied else ())
        ],
        programming_ms=applied.programming_ms if applied else None,
        owner=applied.owner if applied and applied.connected else "",
        peer=session.peer if session else "",
        role=session.role if session else "",
    )


class IntentView:
    """Intents with where they are in force: one look at all switches for many intents."""

    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._switches: dict[str, Applied | None] = {
            node: newest(handles, node) for node in handles.desired.nodes()
        }
        self._errors = {
            node: {error.intent: error.reason for error in applied.errors} if applied else {}
            for node, applied in self._switches.items()
        }

    def model(self, version: IntentVersion, *, applied: bool) -> IntentModel:
        """One intent; `applied`: with the revision of every switch."""
        intent = version.intent
        nodes = self._switches if intent.scope == ALL_SCOPE else (intent.scope,)
        states = [self._on(version, node) for node in nodes if node in self._switches]
        return IntentModel(
            id=intent.id,
            kind=kind_of(type(intent)),
            scope=intent.scope,
            key=intent.key,
            object=intent.object,
            revision=version.revision,
            published_ms=version.published_ms,
            trigger_ms=intent.trigger_ms,
            cookie=f"{cookie_of(intent.id):#018x}",
            switches=len(states),
            in_force=sum(handles.in_force for handles in states),
            lacking=[handles for handles in states if not handles.in_force][:LACKING_MAX],
            applied={handles.node: handles.revision for handles in states} if applied else {},
        )

    def _on(self, version: IntentVersion, node: str) -> IntentOnSwitch:
        applied = self._switches[node]
        if applied is None or applied.epoch != self._handles.intents_epoch:
            return IntentOnSwitch(node=node, in_force=False, revision=0, error="not acknowledged")
        error = self._errors[node].get(version.intent.id, "")
        in_force = applied.revision >= version.revision and not error
        return IntentOnSwitch(node=node, in_force=in_force, revision=applied.revision, error=error)

    def detail(self, version: IntentVersion) -> IntentDetail:
        """One intent with its content."""
        base = self.model(version, applied=True)
        desired = self._handles.desired
        error = desired.unreadable.get(version.intent.id) or desired.failures.get(version.intent.id)
        content = wire.to_builtins(version.intent)
        return IntentDetail(**base.model_dump(), intent=content, error=error or "")


def select_intents(
    desired: Desired, *, scope: str | None, kind: str | None, object_: str | None
) -> list[IntentVersion]:
    """Intents that fit every filter, by id; `object_` also fits `<namespace>/<name>` alone."""
    found = []
    for intent_id in sorted(desired.intents):
        version = desired.intents[intent_id]
        intent = version.intent
        name = intent.object.partition("/")[2]
        if (
            scope in {None, intent.scope}
            and kind in {None, intent_id.split("/", 2)[1]}
            and object_ in {None, intent.object, name}
        ):
            found.append(version)
    return found


def flow_models(
    desired: Desired, rows: Iterable[InstalledFlow], index: CookiesOn
) -> list[FlowModel]:
    """Flows of a dump, by table, then priority downwards."""
    models = []
    for row in sorted(rows, key=lambda r: (r.flow.table, -r.flow.priority, r.flow.match)):
        flow = row.flow
        intent_id = index.lookup(flow.cookie) or ""
        models.append(
            FlowModel(
                table=NAMES.table(flow.table),
                table_id=flow.table,
                priority=flow.priority,
                match=match_text(flow.match),
                actions=flow_actions(flow),
                cookie=f"{flow.cookie:#018x}",
                intent=intent_id or _unknown(flow.cookie),
                object=object_of(desired, intent_id),
                packets=row.packets,
                bytes=row.bytes,
                duration_s=row.duration_s,
                idle_timeout_s=flow.idle_timeout_s,
                hard_timeout_s=flow.hard_timeout_s,
            )
        )
    return models


def flow_actions(flow: Flow) -> str:
    """Actions and goto, tables by name."""
    goto = [] if flow.goto is None else [f"goto_table:{NAMES.table(flow.goto)}"]
    actions = [actions_text(flow.actions, NAMES)] if flow.actions or not goto else []
    return ",".join(actions + goto)


def _unknown(cookie: int) -> str:
    """A cookie of ours that no intent of today has says its kind at least."""
    kind = kind_of_cookie(cookie)
    return f"?/{kind}/?" if kind else ""


def group_models(desired: Desired, groups: Iterable[Group]) -> list[GroupModel]:
    """Groups of a dump, by id."""
    models = []
    for group in sorted(groups, key=lambda g: g.group_id):
        owner = desired.shared.owner(group.group_id) or ""
        models.append(
            GroupModel(
                group_id=group.group_id,
                type=group.type,
                selection_method=group.selection_method,
                intent=owner,
                object=object_of(desired, owner),
                buckets=[
                    BucketModel(
                        bucket_id=bucket.bucket_id,
                        weight=bucket.weight,
                        actions=actions_text(bucket.actions, NAMES),
                    )
                    for bucket in group.buckets
                ],
            )
        )
    return models


def wait_model(reply: WaitReply) -> WaitModel:
    """The answer to a wait."""
    return WaitModel(
        applied=reply.applied,
        stage=reply.stage,
        reason=reply.reason,
        fact_seq=reply.fact_seq,
        revision=reply.revision,
        switches=[
            SwitchWaitModel(
                node=switch.node,
                applied=switch.applied,
                revision=switch.revision,
                reason=switch.reason,
                missing=[
                    MissingModel(intent=item.intent, object=item.object) for item in switch.missing
                ],
            )
            for switch in reply.switches
        ],
    )
