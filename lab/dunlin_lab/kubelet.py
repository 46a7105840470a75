"""
The lab's kubelet: one process plays all nodes.

It follows the Pods of the API server. Each Pod uid has a worker that asks kubelet_core what to do
next, does it, and asks again, until there is nothing to do; a change of the Pod or a retry time
wakes it. runner.py starts it.
"""

from __future__ import annotations

import asyncio
import functools
import time
import traceback
from typing import Any, assert_never

import msgspec

from dunlin_lab import cni, kubelet_nodes, netns
from dunlin_lab.kubeapi import ApiError, Change, KubeApi
from dunlin_lab.kubelet_core import (
    Action,
    CreateSandbox,
    DeleteObject,
    Drain,
    Nothing,
    PodView,
    Report,
    Sandbox,
    Serve,
    TearDown,
    Wait,
    failed_status,
    next_action,
    pod_status,
    retry_at,
    view,
)
from dunlin_lab.paths import LabPaths
from dunlin_lab.responder import Port, ResponderError
from dunlin_lab.sandboxes import OUTSIDE, Node, Sandboxes, load

RESPONDER_CHECK_S = 1.0
_RETRY_S = 0.5
_FAULT_RETRY_S = 5.0
_GONE = (404, 409, 410)


class Kubelet:
    """All Pods of all nodes of one lab."""

    def __init__(
        self,
        api: KubeApi,
        nodes: dict[str, Node],
        sandboxes: Sandboxes,
        *,
        outside: str = "",
    ) -> None:
        self._api = api
        self._nodes = nodes
        self._sandboxes = sandboxes
        self._outside = outside
        self._pods: dict[str, PodView] = {}
        self._boxes: dict[str, Sandbox] = {}
        self._served: dict[str, tuple[Port, ...]] = {}
        self._created: set[str] = set()
        """Sandbox ids made by this process: `adding` is no leftover there."""
        self._wake: dict[str, asyncio.Event] = {}
        self._workers: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Until cancelled."""
        boxes, errors = self._sandboxes.load()
        for error in errors:
            print(f"kubelet: sandbox record: {error}", flush=True)
        self._boxes = {box.uid: box for box in boxes if box.node in self._nodes}
        async with asyncio.TaskGroup() as group:
            for node in self._nodes.values():
                group.create_task(kubelet_nodes.keep_registered(self._api, node))
                group.create_task(
                    kubelet_nodes.collect(node, functools.partial(self._on, node.name))
                )
            group.create_task(self._watch_responder())
            async for change in self._api.follow("/api/v1/pods"):
                self._take(change)

    def _on(self, node: str) -> list[Sandbox]:
        return [box for box in self._boxes.values() if box.node == node]

    def _take(self, change: Change) -> None:
        """Bring our picture of the Pods up to date and wake who is concerned."""
        present: set[str] = set()
        for pod in change.objects:
            uid = str((pod.get("metadata") or {}).get("uid"))
            present.add(uid)
            if change.kind == "deleted":
                self._forget(uid)
            else:
                self._see(pod)
        if change.kind == "listed":
            for uid in (set(self._pods) | set(self._boxes)) - present:
                self._forget(uid)

    def _see(self, pod: dict[str, Any]) -> None:
        """A Pod that exists."""
        try:
            seen = view(pod)
        except ValueError as error:
            print(f"kubelet: {error}", flush=True)
            return
        if seen.node in self._nodes:
            self._pods[seen.uid] = seen
            self._poke(seen.uid)

    def _forget(self, uid: str) -> None:
        """A Pod that the API no longer has; its sandbox may still be here."""
        self._pods.pop(uid, None)
        if uid in self._boxes or uid in self._workers:
            self._poke(uid)

    def _poke(self, uid: str) -> None:
        """Wake the Pod's worker."""
        self._wake.setdefault(uid, asyncio.Event()).set()
        if uid not in self._workers:
            self._workers[uid] = asyncio.create_task(self._work(uid), name=f"pod-{uid}")

    async def _work(self, uid: str) -> None:
        """Do what is next until there is nothing; errors of the world are retried."""
        wake = self._wake[uid]
        while True:
            wake.clear()
            action = self._next(uid)
            if isinstance(action, Nothing):
                # No await between here and the end, so no wake-up is lost.
                del self._workers[uid], self._wake[uid]
                return
            if isinstance(action, Wait):
                await _wait(wake, (action.until_ms - _now_ms()) / 1000)
                continue
            try:
                await self._do(action)
            except (ApiError, ResponderError, OSError) as error:
                if isinstance(error, ApiError) and error.code in _GONE:
                    # The Pod has changed or gone: the watch will say so.
                    await _wait(wake, _RETRY_S)
                    continue
                print(f"kubelet: {type(action).__name__}: {error}", flush=True)
                await _wait(wake, _RETRY_S)
            except Exception:  # noqa: BLE001 - a fault of ours stops one Pod, loudly, not all
                traceback.print_exc()
                await _wait(wake, _FAULT_RETRY_S)

    def _next(self, uid: str) -> Action:
        pod, box = self._pods.get(uid), self._boxes.get(uid)
        served = stale = False
        if box is not None:
            served = pod is not None and self._served.get(box.id) == pod.ports
            mine = box.id in self._created or box.stage == "failed"
            stale = not mine and not self._sandboxes.usable(box)
        return next_action(pod, box, _now_ms(), served=served, stale=stale)

    async def _do(self, action: Action) -> None:
        """One step."""
        match action:
            case CreateSandbox(pod, attempt):
                await self._create(pod, attempt)
            case Serve(pod, box):
                errors = await self._sandboxes.serve(self._nodes[box.node], pod, box)
                self._served[box.id] = pod.ports
                if errors:
                    await kubelet_nodes.emit(self._api, pod, "PortNotServed", "; ".join(errors))
            case Report(pod, box, ready):
                await self._report(pod, box, ready=ready)
            case Drain(box, until_ms):
                await self._sandboxes.drain(box)
                self._keep(msgspec.structs.replace(box, stage="draining", drain_until_ms=until_ms))
            case TearDown(box):
                await self._tear_down(box)
            case DeleteObject(pod):
                await self._delete(pod)
            case Wait() | Nothing():
                raise AssertionError(f"{action} is not a step")
            case _:
                assert_never(action)

    async def _create(self, pod: PodView, attempt: int) -> None:
        """A sandbox; a failure is written on the Pod and retried later."""
        draft = self._sandboxes.draft(pod, attempt)
        self._created.add(draft.id)
        if (old := self._boxes.get(pod.uid)) is not None:
            self._sandboxes.discard(old)
        self._keep(draft)
        try:
            box = await self._sandboxes.create(self._nodes[pod.node], draft)
        except (cni.CniError, netns.NetnsError, OSError) as error:
            when = retry_at(_now_ms(), attempt)
            failed = msgspec.structs.replace(draft, stage="failed", retry_ms=when, error=str(error))
            self._keep(failed)
            await kubelet_nodes.emit(self._api, pod, "FailedCreatePodSandBox", str(error))
            await self._api.patch(_path(pod) + "/status", failed_status(str(error)))
            return
        self._keep(box)

    async def _report(self, pod: PodView, box: Sandbox, *, ready: bool) -> None:
        """Patch the status, and take over at once what the API will show us."""
        status = pod_status(pod, box, self._nodes[box.node].ips, ready=ready)
        seen = view(await self._api.patch(_path(pod) + "/status", status))
        if seen.uid == pod.uid and pod.uid in self._pods:
            self._pods[pod.uid] = seen
        if seen.reported != (box.ips, ready):
            raise ApiError(0, f"{_path(pod)}: status is {seen.reported}, not {(box.ips, ready)}")

    async def _tear_down(self, box: Sandbox) -> None:
        """Remove the sandbox; a plugin that cannot is asked again later, so that nothing leaks."""
        pod = self._pods.get(box.uid)
        if pod is not None and pod.deleting and pod.reported[1] and box.ips:
            try:
                await self._report(pod, box, ready=False)
            except ApiError as error:
                # The object goes next anyway; its namespace must not wait for that.
                print(f"kubelet: {error}", flush=True)
        self._served.pop(box.id, None)
        try:
            await self._sandboxes.remove(self._nodes[box.node], box)
        except (cni.CniError, netns.NetnsError) as error:
            print(f"kubelet: pod {box.namespace}/{box.name}: {error}", flush=True)
            again = msgspec.structs.replace(
                box,
                stage="draining",
                attempt=box.attempt + 1,
                retry_ms=retry_at(_now_ms(), box.attempt),
                error=str(error),
            )
            self._keep(again)
            return
        self._boxes.pop(box.uid, None)
        self._created.discard(box.id)

    async def _delete(self, pod: PodView) -> None:
        """The last word of a kubelet about a Pod."""
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.uid}}
        try:
            await self._api.delete(_path(pod), options)
        except ApiError as error:
            if error.code not in _GONE:
                raise
        self._pods.pop(pod.uid, None)

    async def _watch_responder(self) -> None:
        """A responder that was started anew is told everything again."""
        while True:
            try:
                served = await self._sandboxes.served()
            except ResponderError as error:
                print(f"kubelet: {error}", flush=True)
                await asyncio.sleep(RESPONDER_CHECK_S)
                continue
            if self._outside and OUTSIDE not in served:
                await self._sandboxes.serve_outside(self._outside)
            for uid, box in list(self._boxes.items()):
                if box.id in self._served and box.id not in served:
                    del self._served[box.id]
                    self._poke(uid)
            await asyncio.sleep(RESPONDER_CHECK_S)

    def _keep(self, box: Sandbox) -> None:
        """The sandbox as it is now, in memory and on disk."""
        self._boxes[box.uid] = box
        self._sandboxes.save(box)


def _path(pod: PodView) -> str:
    return f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}"


def _now_ms() -> int:
    """Wall clock: retry and drain times outlive the process."""
    return int(time.time() * 1000)


async def _wait(wake: asyncio.Event, seconds: float) -> None:
    """Until woken, at most so long."""
    try:
        async with asyncio.timeout(max(0.0, seconds)):
            await wake.wait()
    except TimeoutError:
        return


def sandboxes(paths: LabPaths) -> tuple[Sandbox, ...]:
    """The sandboxes of a lab that have addresses now, read from their records."""
    found, _ = load(paths)
    return tuple(box for box in found if box.stage in ("attached", "draining"))
