"""/v1: switches, flows, groups, intents, counters, wait, policy."""

from typing import Annotated

from fastapi import APIRouter, HTTPException, Query, Response

from dunlin.explain.answer import Answer
from dunlin.explain.question import BadQuestion
from dunlin.model.ids import IntentId
from dunlin.openflow import codec, messages
from dunlin.openflow.cookie import cookie_of
from dunlin.openflow.flow import Group
from dunlin.openflow.trace import CannotTrace
from dunlin.service.http import not_found
from dunlin_flowctl import views
from dunlin_flowctl.adapters.session import Refusal, Session, SessionClosed
from dunlin_flowctl.counters import CounterCache
from dunlin_flowctl.denials import Denial
from dunlin_flowctl.explain import Explainer, TooBusy
from dunlin_flowctl.handles import Handles
from dunlin_flowctl.models import (
    Counters,
    Flows,
    Groups,
    IntentDetail,
    Intents,
    Switches,
    SwitchModel,
    WaitModel,
)
from dunlin_flowctl.wait import Waiter

ALL_BITS = 2**64 - 1
PAGE_MAX = 100_000


def router(handles: Handles, waiter: Waiter) -> APIRouter:
    """Every route of flowctl beside the common ones."""
    routes = APIRouter(prefix="/v1")
    _add_switches(routes, handles)
    _add_live(routes, handles)
    _add_intents(routes, handles)
    _add_wait(routes, waiter)
    _add_policy(routes, handles)
    return routes


def _known(handles: Handles, node: str) -> None:
    if node not in views.node_names(handles):
        raise not_found("switch of node", node)


def _session(handles: Handles, node: str) -> Session:
    """The session of this replica with the switch of a node."""
    _known(handles, node)
    intent, fact = handles.desired.switch_intent(node), handles.facts.get(node)
    dpid = intent.dpid if intent else fact.dpid if fact else 0
    session = handles.sessions.get(dpid)
    if session is None:
        raise HTTPException(503, f"the switch of node {node!r} is not connected to this replica")
    return session


def _add_switches(routes: APIRouter, handles: Handles) -> None:
    @routes.get("/switches", tags=["switches"])
    async def switches() -> Switches:
        """Every switch, by node, with what it has acknowledged; also those of other replicas."""
        nodes = views.node_names(handles)
        return Switches(items=[views.switch_model(handles, node) for node in nodes])

    @routes.get("/switches/{node}", tags=["switches"])
    async def switch(node: str) -> SwitchModel:
        """One switch."""
        _known(handles, node)
        return views.switch_model(handles, node)


def _add_live(routes: APIRouter, handles: Handles) -> None:
    counters_of = CounterCache(handles)

    @routes.get("/switches/{node}/flows", tags=["switches"])
    async def flows(
        node: str,
        intent: Annotated[str | None, Query(description="Only flows of this intent id.")] = None,
    ) -> Flows:
        """Flows as the switch holds them now, decoded."""
        session = _session(handles, node)
        cookie, mask = (_cookie(intent), ALL_BITS) if intent else (0, 0)
        rows: list[messages.InstalledFlow] = []
        with _reachable(node):
            async for part in session.replies(
                lambda xid: codec.encode_flow_dump_request(xid, cookie, mask), messages.FlowDump
            ):
                rows.extend(part.entries)
        index = handles.desired.cookies_on(node)
        return Flows(items=views.flow_models(handles.desired, rows, index))

    @routes.get("/switches/{node}/groups", tags=["switches"])
    async def groups(node: str) -> Groups:
        """Groups as the switch holds them now."""
        session = _session(handles, node)
        found: list[Group] = []
        with _reachable(node):
            async for part in session.replies(codec.encode_group_dump_request, messages.GroupDump):
                found.extend(part.groups)
        return Groups(items=views.group_models(handles.desired, found))

    @routes.get("/switches/{node}/counters", tags=["switches"])
    async def counters(node: str) -> Counters:
        """Packets and bytes, read now (at most once in DUNLIN_COUNTERS_INTERVAL_S)."""
        session = _session(handles, node)
        with _reachable(node):
            return await counters_of.read(node, session)


def _cookie(intent: str) -> int:
    try:
        return cookie_of(IntentId(intent))
    except (KeyError, IndexError) as error:
        raise HTTPException(422, f"intent {intent!r}: expected <scope>/<kind>/<key>") from error


class _reachable:  # noqa: N801 - reads as a statement
    """Turns the end of a session into 503 naming the node."""

    def __init__(self, node: str) -> None:
        self._node = node

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (SessionClosed, Refusal)):
            raise HTTPException(503, f"switch of node {self._node!r}: {error}") from error


def _add_intents(routes: APIRouter, handles: Handles) -> None:
    @routes.get("/intents", tags=["intents"])
    async def intents(
        *,
        scope: Annotated[str | None, Query(description='"all" or a node.')] = None,
        kind: Annotated[str | None, Query(description="switch, endpoint, route, service …")] = None,
        object: Annotated[  # noqa: A002 - the name in the interface
            str | None, Query(description="<kind>/<namespace>/<name>, or <namespace>/<name>.")
        ] = None,
        applied: Annotated[bool, Query(description="With the revision of every switch.")] = True,
        limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 10_000,
        after: Annotated[str, Query(description="Only ids after this one.")] = "",
    ) -> Intents:
        """Intents by id, and where they are in force."""
        found = views.select_intents(handles.desired, scope=scope, kind=kind, object_=object)
        found = [version for version in found if version.intent.id > after]
        view = views.IntentView(handles)
        items = [view.model(version, applied=applied) for version in found[:limit]]
        return Intents(items=items, next=items[-1].id if len(found) > limit else "")

    @routes.get("/intents/{intent_id:path}", tags=["intents"])
    async def intent(intent_id: str) -> IntentDetail:
        """One intent with its content and the revision that each switch holds."""
        version = handles.desired.intents.get(IntentId(intent_id))
        if version is None:
            raise not_found("intent", intent_id)
        return views.IntentView(handles).detail(version)


def _add_policy(routes: APIRouter, handles: Handles) -> None:
    explainer = Explainer(handles)

    @routes.get("/policy/denials", tags=["policy"])
    async def denials(
        namespace: Annotated[
            str | None, Query(description="Of either end, or of a policy.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    ) -> list[Denial]:
        """
        Denied packets that were logged, newest first, of the switches of this replica.

        Only of namespaces and policies with the annotation `dunlin.dev/log-denied: "true"`.
        """
        return list(handles.denials.latest(namespace, limit))

    @routes.get("/policy/explain", tags=["policy"])
    async def explain(
        source: Annotated[str, Query(description="`namespace/pod` or an address.")],
        destination: Annotated[
            str, Query(description="`namespace/pod`, `svc/namespace/name` or an address.")
        ],
        port: Annotated[str, Query(description="`80`, `53/UDP`, a Service's port name, `icmp`.")],
    ) -> Answer:
        """
        Which policies and rules let a new connection pass, or do not; for each address, endpoint.

        It walks the flows that the intents of both nodes lead to; `in_force` says whether the
        switch holds them already. 422: the question names the word that is wrong.
        """
        try:
            return await explainer.ask(source, destination, port)
        except BadQuestion as error:
            raise HTTPException(422, str(error)) from error
        except TooBusy as error:
            raise HTTPException(503, str(error), {"Retry-After": "1"}) from error
        except CannotTrace as error:
            raise HTTPException(501, f"cannot be walked: {error}") from error


def _add_wait(routes: APIRouter, waiter: Waiter) -> None:
    @routes.post("/wait", tags=["wait"], responses={504: {"model": WaitModel}})
    async def wait(
        response: Response,
        timeout_s: Annotated[float, Query(ge=0, le=600, description="At most so long.")] = 30.0,
    ) -> WaitModel:
        """
        Until all that the Kubernetes API holds now is in force on every switch.

        504 when time is over: the same body says which switch lacks which objects.
        """
        reply = await waiter.wait(timeout_s)
        response.status_code = 200 if reply.applied else 504
        return views.wait_model(reply)
