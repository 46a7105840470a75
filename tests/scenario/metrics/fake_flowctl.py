"""A flowctl whose counters a test sets."""

from typing import Any

from aiohttp import web

from tests.unit.metrics.build import SERVICE


class FakeFlowctl:
    """`counters[node]` is answered for switches that are connected here; `refusing`: answer 503."""

    def __init__(self) -> None:
        self.counters: dict[str, dict[str, Any]] = {}
        self.elsewhere: list[str] = []
        self.refusing = False
        self.garbage = False
        self.asked = 0
        self.tokens: set[str] = set()
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Listen, on the same port as before."""
        app = web.Application()
        app.router.add_get("/v1/switches", self._switches)
        app.router.add_get("/v1/switches/{node}/counters", self._counters)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close the port."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _switches(self, request: web.Request) -> web.Response:
        self.tokens.add(request.headers.get("Authorization", ""))
        if self.garbage:
            return web.Response(text='{"items": 5}')
        here = [{"node": node, "peer": "127.0.0.1:1", "role": "master"} for node in self.counters]
        there = [{"node": node, "peer": "", "role": ""} for node in self.elsewhere]
        return web.json_response({"items": here + there})

    async def _counters(self, request: web.Request) -> web.Response:
        self.asked += 1
        if self.refusing:
            return web.json_response({"error": "busy"}, status=503)
        return web.json_response(self.counters[request.match_info["node"]])


def switch(
    node: str,
    *,
    pods: dict[str, tuple[int, int]] | None = None,
    routes: dict[str, int] | None = None,
    endpoints: list[tuple[str, int]] | None = None,
) -> dict[str, Any]:
    """Counters of one switch: Pod -> (received, sent), node -> bytes, (endpoint, connections)."""
    ports = [
        {
            "port": number, "name": f"veth-{pod}", "intent": f"{node}/endpoint/default/{pod}/eth0",
            "tx_bytes": received, "tx_packets": received // 1000, "tx_dropped": 0,
            "rx_bytes": sent, "rx_packets": sent // 1000, "rx_dropped": None,
        }
        for number, (pod, (received, sent)) in enumerate((pods or {}).items(), 11)
    ]  # fmt: skip
    flows = [
        {
            "intent": f"all/route/{name}", "table_id": 60, "match": "ip",
            "bytes": octets, "packets": octets // 1000,
        }
        for name, octets in (routes or {}).items()
    ]  # fmt: skip
    buckets = [
        {"bucket_id": i, "endpoint": where, "packets": count, "bytes": count * 60}
        for i, (where, count) in enumerate(endpoints or [])
    ]
    groups = [{"group_id": 1, "intent": SERVICE, "buckets": buckets}] if buckets else []
    return {"node": node, "ports": ports, "flows": flows, "groups": groups}
