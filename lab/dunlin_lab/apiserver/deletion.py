"""Deletion: grace, finalizers, propagation, preconditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dunlin_lab.apiserver import errors
from dunlin_lab.apiserver.registry import is_done
from dunlin_lab.apiserver.resources import NAMESPACES, PODS, Resource
from dunlin_lab.apiserver.values import Obj, meta, seconds_of, thaw, timestamp

if TYPE_CHECKING:
    from collections.abc import Iterable

    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.store import Stored

FOREGROUND = "foregroundDeletion"
ORPHAN = "orphan"
_FINALIZER_OF = {"Foreground": FOREGROUND, "Orphan": ORPHAN}
_FINISHED = ("Failed", "Succeeded")
_DEFAULT_GRACE_SECONDS = 30


@dataclass(frozen=True, slots=True)
class DeleteOptions:
    """metav1.DeleteOptions; `grace_seconds` None means the object's own."""

    grace_seconds: int | None = None
    propagation: str = "Background"
    uid: str | None = None
    revision: str | None = None
    dry_run: bool = False


DELETE_NOW = DeleteOptions(grace_seconds=0)
DELETE = DeleteOptions()


@dataclass(frozen=True, slots=True)
class Deleted:
    """What came of a delete: the last version, and whether it is gone."""

    stored: Stored
    gone: bool


def delete(
    registry: Registry,
    resource: Resource,
    namespace: str,
    name: str,
    options: DeleteOptions = DELETE,
) -> Deleted:
    """
    Delete an object, or begin to.

    Raises:
        ApiError: 404, 409 of a precondition.
    """
    old = registry.get(resource, namespace, name)
    _check_preconditions(resource, old, options)
    if options.dry_run:
        return Deleted(old, gone=True)
    if resource is PODS:
        return _delete_pod(registry, old, options)
    if resource is NAMESPACES:
        return _delete_namespace(registry, old)
    finalizer = _FINALIZER_OF.get(options.propagation)
    finalizers = list(meta(old.obj).get("finalizers") or ())
    if finalizer is not None and finalizer not in finalizers:
        finalizers.append(finalizer)
    if not finalizers:
        return Deleted(registry.store.remove(resource, namespace, name), gone=True)
    if "deletionTimestamp" in meta(old.obj):
        return Deleted(old, gone=False)
    obj = thaw(old.obj)
    obj["metadata"]["finalizers"] = finalizers
    _mark(obj, registry.clock(), 0)
    return Deleted(registry.store.put(resource, obj), gone=False)


def _check_preconditions(resource: Resource, old: Stored, options: DeleteOptions) -> None:
    metadata = meta(old.obj)
    if options.uid not in (None, metadata["uid"]):
        why = f"UID in precondition: {options.uid}, UID in object meta: {metadata['uid']}"
        raise errors.conflict(resource, old.name, f"Precondition failed: {why}")
    found = metadata["resourceVersion"]
    if options.revision not in (None, found):
        why = (
            f"ResourceVersion in precondition: {options.revision}, ResourceVersion in object "
            f"meta: {found}"
        )
        raise errors.conflict(resource, old.name, f"Precondition failed: {why}")


def _mark(obj: Obj, now: float, grace_seconds: int) -> None:
    metadata = obj["metadata"]
    if "deletionTimestamp" not in metadata and metadata.get("generation"):
        metadata["generation"] += 1
    metadata["deletionTimestamp"] = timestamp(now + grace_seconds)
    metadata["deletionGracePeriodSeconds"] = grace_seconds


def _delete_pod(registry: Registry, old: Stored, options: DeleteOptions) -> Deleted:
    """Begin a graceful deletion; with no grace left the Pod is marked once more, and removed."""
    grace = _grace(old.obj, options)
    metadata, now = meta(old.obj), registry.clock()
    if "deletionTimestamp" in metadata and grace > 0:
        begun = seconds_of(metadata["deletionTimestamp"]) - metadata["deletionGracePeriodSeconds"]
        if grace >= metadata["deletionGracePeriodSeconds"]:
            return Deleted(old, gone=False)
        now = begun
    obj = thaw(old.obj)
    _mark(obj, now, grace)
    marked = registry.store.put(PODS, obj)
    if grace > 0 or not is_done(PODS, marked.obj):
        return Deleted(marked, gone=False)
    return Deleted(registry.store.remove(PODS, old.namespace, old.name), gone=True)


def _grace(pod: Obj, options: DeleteOptions) -> int:
    if not pod["spec"].get("nodeName") or pod["status"].get("phase") in _FINISHED:
        return 0
    if options.grace_seconds is not None:
        return max(options.grace_seconds, 0)
    own = pod["spec"].get("terminationGracePeriodSeconds", _DEFAULT_GRACE_SECONDS)
    return max(int(own), 1) if own < 0 else int(own)


def _delete_namespace(registry: Registry, old: Stored) -> Deleted:
    if "deletionTimestamp" in meta(old.obj):
        return Deleted(old, gone=False)
    obj = thaw(old.obj)
    obj["metadata"]["deletionTimestamp"] = timestamp(registry.clock())
    obj["status"]["phase"] = "Terminating"
    if is_done(NAMESPACES, obj):
        return Deleted(registry.store.remove(NAMESPACES, "", old.name), gone=True)
    return Deleted(registry.store.put(NAMESPACES, obj), gone=False)


def delete_all(
    registry: Registry, resource: Resource, items: Iterable[Stored], options: DeleteOptions
) -> None:
    """Delete every one of these that is still there."""
    for item in items:
        if registry.store.of(resource).get(item.namespace, item.name) is not None:
            delete(registry, resource, item.namespace, item.name, options)


def remove_finalizer(registry: Registry, resource: Resource, item: Stored, name: str) -> None:
    """Take one finalizer off; the object goes when it was the last and it is being deleted."""
    obj = thaw(item.obj)
    left = [found for found in meta(obj).get("finalizers") or () if found != name]
    if left:
        obj["metadata"]["finalizers"] = left
    else:
        obj["metadata"].pop("finalizers", None)
    registry.update(resource, item.namespace, item.name, obj)
