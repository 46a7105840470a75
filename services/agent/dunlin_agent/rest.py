"""GET /v1/node, /v1/attachments, /v1/status."""

from typing import Any

from fastapi import APIRouter

from dunlin import wire
from dunlin.service.http import not_found
from dunlin_agent.core import plan
from dunlin_agent.facts import Facts
from dunlin_agent.node import Node


def router(facts: Facts, node: Node) -> APIRouter:
    """The agent's REST API."""
    api = APIRouter(prefix="/v1", tags=["agent"])

    @api.get("/node")
    async def switch() -> Any:
        """The switch fact of this node, as it is or will be published."""
        if facts.state.switch is None:
            raise not_found("switch", facts.node)
        return wire.to_builtins(facts.state.switch)

    @api.get("/attachments")
    async def attachments() -> dict[str, Any]:
        """Every Pod interface that OVSDB records on this node."""
        return {"items": wire.to_builtins(facts.state.ports or ())}

    @api.get("/status")
    async def status() -> dict[str, Any]:
        """Whether Pods can be attached, and what is still to be told to the bus."""
        return {
            "node": facts.node,
            "reason": node.not_ready() or "",
            "epoch": facts.state.epoch,
            "caught_up": facts.state.caught_up,
            "pending": [repr(effect) for effect in plan(facts.state)][:100],
            "applied": None if facts.applied is None else wire.to_builtins(facts.applied),
        }

    return api
