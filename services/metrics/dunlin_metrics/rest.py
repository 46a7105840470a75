"""GET / and /v1/…."""

from importlib import resources
from typing import Any

from fastapi import APIRouter, Response

from dunlin_metrics import policies, views
from dunlin_metrics.state import State

# Everything is in the page itself: nothing else may be loaded, from nowhere.
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'"
    ),
    "Cache-Control": "no-cache",
}


def router(state: State) -> APIRouter:
    """The page and the REST API."""
    api = APIRouter(tags=["network"])
    page = resources.files("dunlin_metrics").joinpath("page/index.html").read_text("utf-8")

    @api.get("/", include_in_schema=False)
    async def index() -> Response:
        return Response(page, media_type="text/html; charset=utf-8", headers=PAGE_HEADERS)

    @api.get("/v1/topology")
    async def topology() -> dict[str, Any]:
        """Nodes, links between them, Pods."""
        return views.topology(state)

    @api.get("/v1/traffic/pods")
    async def traffic_of_pods(namespace: str | None = None) -> dict[str, Any]:
        """Bytes, packets and drops of each Pod, from its own view; they never fall."""
        return {"items": views.traffic_of_pods(state, namespace)}

    @api.get("/v1/traffic/nodes")
    async def traffic_of_nodes() -> dict[str, Any]:
        """Bytes and packets from each node to each other; they never fall."""
        return {"items": views.traffic_of_nodes(state)}

    @api.get("/v1/services")
    async def services(namespace: str | None = None) -> dict[str, Any]:
        """How each Service spreads new connections over its endpoints, and how it should."""
        return {"items": views.services(state, namespace)}

    @api.get("/v1/policies")
    async def network_policies(namespace: str | None = None) -> dict[str, Any]:
        """
        What each rule of each policy allowed, and what was denied and by whom.

        `namespace=` (empty): cluster-wide policies only. `denied`: `rule` null means that these
        policies isolate and no rule allowed it. Totals never fall; rates between two readings.
        """
        return policies.policies(state, namespace)

    return api
