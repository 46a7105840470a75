"""
A Kubernetes API that only lists and watches: of a cluster of any size, in a process of its own.

`python -m bench.stub_api NODES SERVICES KUBECONFIG`. The bench changes it by POST /bench: lines of
`<type> <path of the collection> <object>`.
"""

import asyncio
import json
import sys
from collections import defaultdict
from pathlib import Path

from aiohttp import web

from bench.scale_cluster import Size, encoded, objects

LIMIT = 500


class Collections:
    """Objects as bytes by collection and key, and who watches."""

    def __init__(self, size: Size) -> None:
        self.version = 1
        self.items: dict[str, dict[str, bytes]] = defaultdict(dict)
        self.watchers: dict[str, set[asyncio.Queue[bytes]]] = defaultdict(set)
        for path, item in objects(size):
            item["metadata"]["resourceVersion"] = "1"
            self.items[path][self.key(item)] = encoded(item)

    @staticmethod
    def key(item: dict[str, dict[str, str]]) -> str:
        """Within its collection."""
        return f"{item['metadata'].get('namespace', '')}/{item['metadata']['name']}"

    def change(self, what: str, path: str, text: str) -> None:
        """One event, for all who watch."""
        self.version += 1
        item = json.loads(text)
        item["metadata"]["resourceVersion"] = str(self.version)
        data = encoded(item)
        if what == "DELETED":
            self.items[path].pop(self.key(item), None)
        else:
            self.items[path][self.key(item)] = data
        line = b'{"type":"%s","object":%s}\n' % (what.encode(), data)
        for queue in self.watchers[path]:
            queue.put_nowait(line)


async def _list(request: web.Request) -> web.StreamResponse:
    held: Collections = request.app[HELD]
    if request.query.get("watch"):
        return await _watch(request, held)
    start = int(request.query.get("continue") or 0)
    every = list(held.items[request.path].values())
    page = every[start : start + int(request.query.get("limit", LIMIT))]
    end = start + len(page)
    more = b',"continue":"%d"' % end if end < len(every) else b""
    head = b'{"kind":"List","apiVersion":"v1","metadata":{"resourceVersion":"%d"%s},"items":['
    body = head % (held.version, more) + b",".join(page) + b"]}"
    return web.Response(body=body, content_type="application/json")


async def _watch(request: web.Request, held: Collections) -> web.StreamResponse:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    held.watchers[request.path].add(queue)
    response = web.StreamResponse(headers={"Content-Type": "application/json"})
    try:
        await response.prepare(request)
        while True:
            line = await queue.get()
            while not queue.empty():
                line += queue.get_nowait()
            await response.write(line)
    finally:
        held.watchers[request.path].discard(queue)


async def _change(request: web.Request) -> web.Response:
    held: Collections = request.app[HELD]
    for line in (await request.text()).splitlines():
        held.change(*line.split(" ", 2))
    return web.Response(text=str(held.version))


HELD = web.AppKey("held", Collections)


async def serve(size: Size, kubeconfig: Path) -> None:
    """Until it is terminated; the kubeconfig is there as soon as it answers."""
    app = web.Application(client_max_size=1 << 28)
    app[HELD] = Collections(size)
    app.router.add_post("/bench", _change)
    app.router.add_get("/{path:.*}", _list)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    partial = kubeconfig.with_suffix(".part")
    partial.write_text(json.dumps(config))
    partial.rename(kubeconfig)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Size(int(sys.argv[1]), int(sys.argv[2])), Path(sys.argv[3])))
