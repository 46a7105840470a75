"""
How the watcher should read 150,000 Pods.

With the kubernetes package's models, or with its transport alone and json or msgspec.

Each way runs in a process of its own against a synthetic API server in another one (Pods of about 6
KB, pages of 500), and keeps the same compact state. First all ways take turns with 5,000 Pods: CPU
time per Pod. Then the watcher's way reads all 150,000 once: time, and its highest resident memory,
which must stay below 1 GB; the others are too slow for so many.
"""

import asyncio
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web

from bench.measure import Metric, Options, Table, take_turns

PODS, FEW_PODS = 150_000, 5_000
PAGE = 500
LIMIT_MB = 1024


def template() -> dict[str, Any]:
    """A Pod as large and as varied as those of a real Deployment."""
    fields: dict[str, Any] = {
        f"f:field{i}": {".": {}, "f:name": {}, "f:value": {}} for i in range(45)
    }
    probe = {"httpGet": {"path": "/healthz", "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10}
    container = {
        "name": "app",
        "image": "registry.example/team/app@sha256:" + "0" * 64,
        "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
        "env": [{"name": f"VARIABLE_{i}", "value": "some value"} for i in range(20)],
        "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "100m"}},
        "volumeMounts": [{"name": f"volume-{i}", "mountPath": f"/mnt/{i}"} for i in range(4)],
        "livenessProbe": probe,
        "readinessProbe": probe,
        "imagePullPolicy": "IfNotPresent",
    }
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind in ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]
    return {
        "metadata": {
            "name": "@NAME@",
            "namespace": "@NAMESPACE@",
            "uid": "@UID@",
            "resourceVersion": "@VERSION@",
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": "app-@APP@", "pod-template-hash": "7d4b9c6f5", "team": "team-1"},
            "annotations": {"prometheus.io/scrape": "true", "checksum/config": "0" * 64},
            "managedFields": [{"manager": "kubelet", "operation": "Update", "fieldsV1": fields}],
        },
        "spec": {
            "nodeName": "node-@NODE@",
            "containers": [container],
            "volumes": [{"name": f"volume-{i}", "emptyDir": {}} for i in range(4)],
            "serviceAccountName": "default",
            "tolerations": [{"key": f"key-{i}", "operator": "Exists"} for i in range(3)],
        },
        "status": {
            "phase": "Running",
            "podIP": "@IP@",
            "podIPs": [{"ip": "@IP@"}, {"ip": "fd00::@HEX@"}],
            "conditions": conditions,
            "containerStatuses": [
                {
                    "name": "app",
                    "ready": True,
                    "restartCount": 0,
                    "image": container["image"],
                    "imageID": container["image"],
                }
            ],
        },
    }


def pod(text: str, i: int) -> str:
    """Pod number `i`."""
    for name, value in (
        ("NAME", f"app-{i // 10}-7d4b9c6f5-{i:06d}"),
        ("NAMESPACE", f"team-{i % 500}"),
        ("UID", f"00000000-0000-4000-8000-{i:012d}"),
        ("VERSION", str(1_000_000 + i)),
        ("APP", str(i // 10)),
        ("NODE", str(i % 5000)),
        ("IP", f"10.{i >> 16 & 255}.{i >> 8 & 255}.{i & 255}"),
        ("HEX", f"{i:x}"[-4:]),
    ):
        text = text.replace(f"@{name}@", value)
    return text


async def serve(pods: int, pipe: Connection) -> None:
    """The synthetic API server, until it is terminated."""
    text = json.dumps(template(), separators=(",", ":"))

    async def answer(request: web.Request) -> web.Response:
        start = int(request.query.get("continue") or 0)
        end = min(start + int(request.query["limit"]), pods)
        more = f',"continue":"{end}"' if end < pods else ""
        items = ",".join(pod(text, i) for i in range(start, end))
        head = (
            f'{{"kind":"PodList","apiVersion":"v1","metadata":{{"resourceVersion":"9000000"{more}}}'
        )
        return web.Response(text=f'{head},"items":[{items}]}}', content_type="application/json")

    app = web.Application()
    app.router.add_get("/api/v1/pods", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    pipe.send((runner.addresses[0][1], len(pod(text, 0))))
    await asyncio.Event().wait()


def server_process(pods: int, pipe: Connection) -> None:
    """Entry point of the server's process."""
    asyncio.run(serve(pods, pipe))


def kubeconfig(port: int, folder: str) -> str:
    """A kubeconfig for the synthetic server."""
    path = Path(folder) / "kubeconfig"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path.write_text(json.dumps(config))
    return str(path)


async def by_watcher(config: str, pods: int) -> int:
    """The watcher's own way: pages as bytes, msgspec, one fact at a time into its state."""
    from dunlin_watcher.adapters.kubernetes import KubernetesApi
    from dunlin_watcher.core import step
    from dunlin_watcher.events import ListEnded, ListStarted, Seen
    from dunlin_watcher.kinds import KINDS
    from dunlin_watcher.state import State

    api, state, seen = KubernetesApi(config, page_size=PAGE), State(), 0
    step(state, ListStarted("pod"))
    async for page in api.pages(KINDS["pod"]):
        for raw in page.items or ():
            step(state, Seen("pod", raw, 1))
            seen += 1
        if seen >= pods:
            break
    step(state, ListEnded("pod", "9000000"))
    await api.close()
    return state.kinds["pod"].count


async def by_json(config: str, pods: int) -> int:
    """The package's transport, the standard library's json, the watcher's normaliser and state."""
    from kubernetes.aio import client
    from kubernetes.aio import config as loader

    from dunlin_watcher.core import step
    from dunlin_watcher.events import Seen
    from dunlin_watcher.state import State

    load: Any = loader.load_kube_config
    await load(config)
    state, seen, token = State(), 0, None
    async with client.ApiClient() as api:
        core = client.CoreV1Api(api)
        while seen < pods:
            answer = await core.list_pod_for_all_namespaces_without_preload_content(
                limit=PAGE, _continue=token
            )
            page = json.loads(await answer.read())
            for item in page["items"]:
                step(state, Seen("pod", json.dumps(item).encode(), 1))
                seen += 1
            token = page["metadata"].get("continue")
            if not token:
                break
    return state.kinds["pod"].count


async def by_models(config: str, pods: int) -> int:
    """The package's typed list; what the state would keep of each Pod is taken from its model."""
    from kubernetes.aio import client
    from kubernetes.aio import config as loader

    load: Any = loader.load_kube_config
    await load(config)
    kept: dict[str, tuple[Any, ...]] = {}
    token = None
    async with client.ApiClient() as api:
        core = client.CoreV1Api(api)
        while len(kept) < pods:
            page = await core.list_pod_for_all_namespaces(limit=PAGE, _continue=token)
            items: Any = page.items
            for item in items:
                ips = [ip.ip for ip in item.status.pod_ips or ()]
                key = f"{item.metadata.namespace}/{item.metadata.name}"
                kept[key] = (item.metadata.uid, item.spec.node_name, ips)
            meta = page.metadata
            token = meta.var_continue if meta else None
            if not token:
                break
    return len(kept)


WATCHER = "watcher: aio transport, msgspec"
WAYS: dict[str, Callable[[str, int], Coroutine[Any, Any, int]]] = {
    WATCHER: by_watcher,
    "aio transport, json": by_json,
    "aio models": by_models,
}


def reader_process(way: str, config: str, pods: int, pipe: Connection) -> None:
    """One reader's process: sends (Pods, wall seconds, CPU seconds, highest resident MB)."""
    import kubernetes.aio.client  # noqa: F401 - its two seconds are the same for all ways
    import uvloop

    started, cpu = time.perf_counter(), time.process_time()
    read: int = uvloop.run(WAYS[way](config, pods))
    wall, cpu = time.perf_counter() - started, time.process_time() - cpu
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send((read, wall, cpu, usage.ru_maxrss / 1024))


def measure(way: str, config: str, pods: int) -> tuple[int, float, float, float]:
    """Run one way in a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=reader_process, args=(way, config, pods, theirs))
    process.start()
    theirs.close()
    try:
        result: tuple[int, float, float, float] = ours.recv()
    finally:
        process.join()
    return result


def run(options: Options) -> list[Table]:
    """Both parts."""
    pods = PODS // 10 if options.quick else PODS
    few = FEW_PODS // 5 if options.quick else FEW_PODS
    cpu = Metric("CPU per Pod", "us", digits=0)
    turns = Table(f"List {few:,} Pods", [cpu], WATCHER)
    whole = Table(
        f"List {pods:,} Pods",
        [Metric("time", "s"), cpu, Metric("resident memory", "MB", digits=0)],
        WATCHER,
    )
    with tempfile.TemporaryDirectory() as folder, serving(pods) as (port, size):
        config = kubeconfig(port, folder)

        def way(name: str) -> dict[str, float]:
            read, _, used, _ = measure(name, config, few)
            return {cpu.name: used / max(read, 1) * 1e6}

        ways = {name: (lambda name=name: way(name)) for name in WAYS}
        take_turns(ways, turns, options.rounds(3), options.progress)
        options.progress(f"{whole.title}: {WATCHER}")
        read, wall, used, resident = measure(WATCHER, config, pods)
    row = whole.row(WATCHER)
    row.add(time=wall, **{cpu.name: used / max(read, 1) * 1e6, "resident memory": resident})
    verdict = "within" if resident < LIMIT_MB else "BEYOND"
    whole.notes.append(f"{read:,} Pods of {size} bytes; {verdict} {LIMIT_MB} MB")
    return [turns, whole]


@contextmanager
def serving(pods: int) -> Iterator[tuple[int, int]]:
    """The synthetic API server: its port, and the bytes of one Pod."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=server_process, args=(pods, theirs), daemon=True)
    server.start()
    try:
        port, size = ours.recv()
        yield port, size
    finally:
        server.terminate()
        server.join()
