"""POST /v1/plan: what a change would do, before it is applied. docs/plan.md."""

import asyncio
from collections import Counter, defaultdict
from typing import Any, Literal

from fastapi import APIRouter, HTTPException
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from dunlin.bus.base import Bus
from dunlin.events.facts import Fact, SwitchFact, kind_of
from dunlin_planner.connections import Live, live_connections
from dunlin_planner.core.preview.flows import NONE, on_switch
from dunlin_planner.core.preview.objects import Change, read
from dunlin_planner.core.preview.ports import described
from dunlin_planner.core.preview.preview import NEEDED, Preview, preview
from dunlin_planner.core.preview.reach import Row
from dunlin_planner.shell import Shell

OBJECTS_MAX = 10_000
WORKLOAD_ROWS_MAX = 100
"""With more rows than this nobody reads workloads: then namespaces."""


class PlanRequest(BaseModel):
    """Manifests as `kubectl apply -f` takes them; `delete`: as `kubectl delete -f`."""

    model_config = ConfigDict(extra="forbid")

    objects: list[Any] = Field(max_length=OBJECTS_MAX)
    delete: bool = False
    connections: bool = Field(True, description="Ask the nodes for connections that would be cut.")
    limit: int = Field(200, ge=1, le=10_000, description="Rows of each list; totals count all.")
    by: Literal["auto", "workload", "namespace"] = Field(
        "auto", description=f"Rows of pairs; auto: namespaces beyond {WORKLOAD_ROWS_MAX} workloads."
    )


def router(shell: Shell, bus: Bus) -> APIRouter:
    """One request at a time: each reads all facts anew, in a thread."""
    api = APIRouter(prefix="/v1", tags=["planner"])
    turn = asyncio.Lock()

    @api.post("/plan")
    async def plan(request: PlanRequest) -> Any:
        """
        Pairs of Pods whose reachability changes, flows that come and go, connections that are cut.

        Nothing is applied. 422 names objects that cannot be planned, by field.
        """
        if reason := shell.not_ready():
            raise HTTPException(503, f"planner: {reason}")
        async with turn:
            return await _plan(shell, bus, request)

    return api


async def _plan(shell: Shell, bus: Bus, request: PlanRequest) -> Any:
    state = shell.state
    change = read(request.objects, state.find, delete=request.delete)
    if change.problems:
        return _refused(change)
    kinds = [kind_of(kind) for kind in (*NEEDED, SwitchFact)]
    facts: dict[str, list[Fact]] = {kind: list(state.facts[kind].values()) for kind in kinds}
    at = {"fact_epoch": shell.epoch, "fact_seq": shell.seq}
    seen = await asyncio.to_thread(preview, facts, change.events)
    losing = seen.closes()
    asked = request.connections and bool(losing)
    live = await live_connections(bus, seen.nodes, seen.addresses(losing)) if asked else Live()
    cut = await asyncio.to_thread(_cut, seen, live)
    return {
        **at,
        "verdict": _verdict(seen, live, cut),
        "objects": [{"object": name, "action": action} for name, action in change.actions],
        "reachability": _reachability(seen, request),
        "flows": _flows(seen, request.limit),
        "connections": {
            "asked": asked,
            "cut": sum(row["count"] for row in cut),
            "items": cut[: request.limit],
            "more": max(0, len(cut) - request.limit),
            "silent": [{"node": n, "reason": why} for n, why in sorted(live.silent.items())],
            "truncated": live.truncated,
        },
    }


def _refused(change: Change) -> JSONResponse:
    found = [{"object": p.object, "field": p.field, "reason": p.reason} for p in change.problems]
    text = "; ".join(f"{p.object}: {p.field}: {p.reason}" for p in change.problems)
    return JSONResponse({"error": text, "items": found}, 422)


def _verdict(seen: Preview, live: Live, cut: list[dict[str, Any]]) -> str:
    """
    `cuts`, `reachability` or `none`.

    `unknown`: something closes, and a node did not say what lives there.
    """
    if cut:
        return "cuts"
    if live.silent or live.truncated or not seen.reach.complete:
        return "unknown"
    return "reachability" if seen.reach.rows else "none"


def _reachability(seen: Preview, request: PlanRequest) -> dict[str, Any]:
    reach, by, limit = seen.reach, request.by, request.limit
    if by == "auto":
        by = "workload" if len(reach.rows) <= WORKLOAD_ROWS_MAX else "namespace"
    counts = reach.rows if by == "workload" else reach.by_namespace()
    rows = sorted(counts.items(), key=_order)
    return {
        "pairs": reach.pairs,
        "opened": reach.opened,
        "closed": reach.closed,
        "complete": reach.complete,
        "by": by,
        "items": [
            {
                "source": str(row.source),
                "destination": str(row.destination),
                "pairs": count,
                "family": row.family,
                "opened": list(described(row.opened)),
                "closed": list(described(row.closed)),
            }
            for row, count in rows[:limit]
        ],
        "more": max(0, len(rows) - limit),
    }


def _order(item: tuple[Row, int]) -> tuple[bool, bool, int, Row]:
    """Pods before addresses outside, what closes before what opens, many pairs before few."""
    row, count = item
    outside = not (row.source.namespace and row.destination.namespace)
    return outside, not row.closed, -count, row


def _flows(seen: Preview, limit: int) -> dict[str, Any]:
    """`all`: what every switch alike gets; `switches`: the sum on each."""
    switches = {node: on_switch(seen.flows, node) for node in seen.nodes}
    total = sum(switches.values(), NONE)
    shared = seen.flows.get("all", NONE)
    shown = {node: delta for node, delta in switches.items() if delta != NONE}
    return {
        "added": total.added,
        "removed": total.removed,
        "modified": total.modified,
        "all": {"added": shared.added, "removed": shared.removed, "modified": shared.modified},
        "switches": [
            {"node": n, "added": d.added, "removed": d.removed, "modified": d.modified}
            for n, d in list(shown.items())[:limit]
        ],
        "more": max(0, len(shown) - limit),
    }


def _cut(seen: Preview, live: Live) -> list[dict[str, Any]]:
    """Connections that are allowed now and would not be, by workload, most first."""
    counts: Counter[tuple[str, str, str]] = Counter()
    some: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for link, count in live.counts.items():
        if not seen.is_cut(link):
            continue
        port = f"{link.protocol}/{link.port}" if link.port else link.protocol
        key = str(seen.workload(link.source)), str(seen.workload(link.destination)), port
        counts[key] += count
        some[key].append(f"{_end(seen, link.source)} -> {_end(seen, link.destination)}")
    return [
        {"source": s, "destination": d, "port": port, "count": n, "such_as": min(some[s, d, port])}
        for (s, d, port), n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def _end(seen: Preview, ip: Any) -> str:
    pod = seen.pod(ip)
    return f"{pod.namespace}/{pod.name}" if pod is not None else str(ip)
