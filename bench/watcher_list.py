"""
How the watcher should read 150,000 Pods.

With the kubernetes package's models, or with its transport alone and json or msgspec.

    python bench/watcher_list.py [--pods 150000] [--other-pods 5000]

Each way runs in a process of its own against a synthetic API server in another one (Pods of about 6
KB, pages of 500), and keeps the same compact state. Printed: time per Pod as a ratio to the
watcher's way, and the highest resident memory. The other ways are too slow for all Pods: they read
`--other-pods` of them.
"""

import argparse
import asyncio
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from aiohttp import web

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


WAYS: dict[str, Callable[[str, int], Coroutine[Any, Any, int]]] = {
    "watcher (aio transport, msgspec)": by_watcher,
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


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pods", type=int, default=150_000)
    parser.add_argument("--other-pods", type=int, default=5_000)
    options = parser.parse_args()
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=server_process, args=(options.pods, theirs), daemon=True)
    server.start()
    port, size = ours.recv()
    out = sys.stdout.write
    out(f"{options.pods} Pods of {size} bytes\n")
    out(f"{'way':34}{'Pods':>8}{'wall s':>8}{'CPU us/Pod':>12}{'ratio':>7}{'RSS MB':>8}\n")
    base = 0.0
    with tempfile.TemporaryDirectory() as folder:
        config = kubeconfig(port, folder)
        for way in WAYS:
            pods = options.pods if way.startswith("watcher") else options.other_pods
            read, wall, cpu, rss = measure(way, config, pods)
            each = cpu / max(read, 1) * 1e6
            base = base or each
            out(f"{way:34}{read:8}{wall:8.1f}{each:12.0f}{each / base:7.1f}{rss:8.0f}\n")
            if way.startswith("watcher"):
                verdict = "within" if rss < LIMIT_MB else "BEYOND"
                out(f"{'':34}{verdict} {LIMIT_MB} MB\n")
    server.terminate()
    server.join()


if __name__ == "__main__":
    main()
