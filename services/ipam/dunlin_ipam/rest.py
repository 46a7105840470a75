"""GET /v1/ipam/pools, blocks, addresses, violations; /v1/report."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query

from dunlin import wire
from dunlin.service.fact_reader import PREFIX
from dunlin_ipam.core.blocks import ip_order
from dunlin_ipam.core.violations import violations
from dunlin_ipam.shell import Shell
from dunlin_ipam.usage import block_usage, pool_usage

LIMIT_MAX = 100_000
Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX)]


def router(shell: Shell) -> APIRouter:
    """Ipam's REST API; every replica knows the whole ledger."""
    api = APIRouter(prefix="/v1", tags=["ipam"])
    view = shell.view

    @api.get("/ipam/pools")
    async def pools() -> dict[str, Any]:
        """The pools and how full they are."""
        return {"items": [wire.to_builtins(p) for p in pool_usage(view.state, view.now_ms())]}

    @api.get("/ipam/blocks")
    async def blocks(node: str = "") -> dict[str, Any]:
        """The blocks and how full they are."""
        found = block_usage(view.state, view.now_ms())
        return {"items": [wire.to_builtins(use) for use in found if node in ("", use.node)]}

    @api.get("/ipam/addresses")
    async def addresses(
        node: str = "",
        pod: Annotated[str, Query(description="namespace/name")] = "",
        state: Literal["", "allocated", "released"] = "allocated",
        limit: Limit = 1000,
    ) -> dict[str, Any]:
        """Lines of the ledger, by address; `state=` gives all of them."""
        found = [
            line.fact
            for ip in sorted(view.state.lines, key=ip_order)
            if (line := view.state.lines[ip])
            and node in ("", line.fact.node)
            and state in ("", line.fact.state)
            and pod in ("", f"{line.fact.pod_namespace}/{line.fact.pod_name}")
        ]
        return {
            "items": [_shown(fact) for fact in found[:limit]],
            "total": len(found),
        }

    @api.get("/ipam/violations")
    async def broken() -> dict[str, Any]:
        """Broken invariants of the ledger: empty, or a bug."""
        return {"items": violations(view.state)}

    @api.get("/report")
    async def report() -> dict[str, Any]:
        """What is not honoured and why; facts that do not parse; how far this replica is."""
        return {
            "items": [wire.to_builtins(finding) for finding in shell.findings()],
            "bad_facts": [
                {"object": subject.removeprefix(PREFIX), "error": reason}
                for subject, reason in sorted(view.reader.bad.items())
            ],
            "shards": sorted(shell.working),
            "fencing": shell.shards.fencing(),
            "fact_epoch": view.epoch,
            "fact_seq": view.seq,
            "intent_seq": shell.writer.seq,
            "pending": len(shell.writer.pending),
        }

    return api


def _shown(fact: Any) -> dict[str, Any]:
    return {
        "ip": str(fact.ip),
        "node": fact.node,
        "state": fact.state,
        "owner": fact.owner,
        "pod_namespace": fact.pod_namespace,
        "pod_name": fact.pod_name,
        "pod_uid": fact.pod_uid,
        "since_ms": fact.since_ms,
    }
