"""Binding, scale, eviction and finalize."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dunlin_lab.apiserver import errors
from dunlin_lab.apiserver.deletion import DeleteOptions, delete
from dunlin_lab.apiserver.registry import DEFAULT_OPTIONS, apply_patch
from dunlin_lab.apiserver.resources import NAMESPACES, PODS, Resource
from dunlin_lab.apiserver.selectors import from_object
from dunlin_lab.apiserver.strategies.pod import copy_topology
from dunlin_lab.apiserver.values import Obj, meta, thaw, timestamp

if TYPE_CHECKING:
    from dunlin_lab.apiserver.registry import Registry, WriteOptions, Written

_SCALE_META = ("name", "namespace", "uid", "resourceVersion", "creationTimestamp")


def bind(registry: Registry, namespace: str, name: str, node: str) -> None:
    """
    Bind a Pod to a node, as a scheduler does.

    Raises:
        ApiError: 404, 409 when it is bound or being deleted already.
    """
    old = registry.get(PODS, namespace, name)
    bound = old.obj["spec"].get("nodeName")
    if bound:
        why = f"pod {name} is already assigned to node {bound!r}".replace("'", '"')
        raise errors.conflict(PODS, name, why)
    if "deletionTimestamp" in meta(old.obj):
        why = f"pod {name} is being deleted, cannot be assigned to a host"
        raise errors.conflict(PODS, name, why)
    obj = thaw(old.obj)
    obj["spec"]["nodeName"] = node
    copy_topology(obj, registry.store)
    scheduled = {
        "type": "PodScheduled", "status": "True", "lastProbeTime": None,
        "lastTransitionTime": timestamp(registry.clock()),
    }  # fmt: skip
    conditions = obj["status"].setdefault("conditions", [])
    conditions[:] = [item for item in conditions if item.get("type") != "PodScheduled"]
    conditions.append(scheduled)
    registry.store.put(PODS, obj)


def bind_request(registry: Registry, namespace: str, name: str, body: Any) -> Obj:
    """
    Answer a POST of a Binding.

    Raises:
        ApiError: 400, 404, 409, 422.
    """
    target = body.get("target") if isinstance(body, dict) else None
    node = target.get("name") if isinstance(target, dict) else None
    if not isinstance(node, str) or not node:
        raise errors.invalid("Binding", "", name, [errors.required("target.name")])
    assert isinstance(target, dict), "a name was read from it"
    if target.get("kind") not in (None, "", "Node"):
        cause = errors.not_supported("target.kind", target.get("kind"), ("Node", "<empty>"))
        raise errors.invalid("Binding", "", name, [cause])
    bind(registry, namespace, name, node)
    return errors.success(201)


def evict(registry: Registry, namespace: str, name: str, body: Any) -> Obj:
    """
    Answer a POST of an Eviction; there are no disruption budgets, so it is a deletion.

    Raises:
        ApiError: 404.
    """
    asked = (body.get("deleteOptions") if isinstance(body, dict) else None) or {}
    delete(registry, PODS, namespace, name, DeleteOptions(asked.get("gracePeriodSeconds")))
    return errors.success(201)


def scale_of(obj: Obj) -> Obj:
    """Return the Scale of a workload."""
    metadata = meta(obj)
    return {
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": {key: metadata[key] for key in _SCALE_META if key in metadata},
        "spec": {"replicas": obj["spec"].get("replicas", 0)},
        "status": {
            "replicas": (obj.get("status") or {}).get("replicas", 0),
            "selector": str(from_object(obj["spec"].get("selector"))),
        },
    }


def set_scale(
    registry: Registry,
    resource: Resource,
    namespace: str,
    name: str,
    scale: Any,
    options: WriteOptions = DEFAULT_OPTIONS,
) -> Obj:
    """
    Write a Scale back to its workload; returns the new Scale.

    Raises:
        ApiError: 400, 404, 409, 422.
    """
    old = registry.get(resource, namespace, name)
    replicas = (scale.get("spec") or {}).get("replicas", 0) if isinstance(scale, dict) else None
    if not isinstance(replicas, int):
        message = "spec.replicas of a Scale must be a number"
        raise errors.bad_request(message)
    if replicas < 0:
        text = "must be greater than or equal to 0"
        cause = errors.invalid_value("spec.replicas", replicas, text)
        raise errors.invalid("Scale", "autoscaling", name, [cause])
    obj = thaw(old.obj)
    asked = meta(scale).get("resourceVersion")
    if asked:
        obj["metadata"]["resourceVersion"] = asked
    obj["spec"]["replicas"] = replicas
    return scale_of(registry.update(resource, namespace, name, obj, options).stored.obj)


def patch_scale(
    registry: Registry,
    resource: Resource,
    namespace: str,
    name: str,
    patch_type: str,
    patch: Any,
    options: WriteOptions = DEFAULT_OPTIONS,
) -> Obj:
    """
    Patch a Scale.

    Raises:
        ApiError: 400, 404, 409, 415, 422.
    """
    current = scale_of(registry.get(resource, namespace, name).obj)
    patched = apply_patch("Scale", patch_type, current, patch)
    return set_scale(registry, resource, namespace, name, patched, options)


def finalize(registry: Registry, name: str, body: Any) -> Written:
    """
    Answer a PUT of a namespace's finalize.

    Raises:
        ApiError: 400, 404, 409.
    """
    return registry.update(NAMESPACES, "", name, body, subresource="finalize")
