"""
What a write means: create, update, patch, the same for every kind.

The HTTP layer and the controllers both write through here. Everything is synchronous, so that one
write is one step of the event loop and no write ever waits for another.
"""

from __future__ import annotations

import random
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dunlin_lab.apiserver import errors
from dunlin_lab.apiserver.allocators import AddressPool, PortPool
from dunlin_lab.apiserver.apply import server_side_apply
from dunlin_lab.apiserver.patches import json_patch, merge_patch
from dunlin_lab.apiserver.resources import (
    CLUSTERNETWORKPOLICIES,
    NAMESPACES,
    SERVICES,
    Resource,
)
from dunlin_lab.apiserver.store import Change, Store, Stored, stored_of
from dunlin_lab.apiserver.strategic import strategic_merge
from dunlin_lab.apiserver.strategies.base import Context
from dunlin_lab.apiserver.strategies.checks import check_metadata
from dunlin_lab.apiserver.strategies.service import addresses_of, node_ports_of
from dunlin_lab.apiserver.strategies.shapes import check_shape
from dunlin_lab.apiserver.strategies.table import strategy_of
from dunlin_lab.apiserver.values import Obj, meta, thaw, timestamp, without_nulls

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dunlin_lab.apiserver.allocators import Network

NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"
VALIDATE_ANNOTATION = "lab.dunlin.io/validate"
"""
An object with this annotation at "false" is stored unchecked; tests inject bad ones so. A write
with `?dunlin-validate=false` sets it, so that later writes to the object are not refused either.
"""

JSON_PATCH = "application/json-patch+json"
MERGE_PATCH = "application/merge-patch+json"
STRATEGIC_PATCH = "application/strategic-merge-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"
PATCH_TYPES = (JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH, APPLY_PATCH)

_KEPT = ("uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds")


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """What a client may ask of a create, an update or a patch."""

    dry_run: bool = False
    validate: bool = True
    manager: str = "unknown"
    force: bool = False


DEFAULT_OPTIONS = WriteOptions()


@dataclass(frozen=True, slots=True)
class Written:
    """What came of a write; `created` tells 201 from 200."""

    stored: Stored
    created: bool = False


class Registry:
    """The one writer of a store."""

    def __init__(
        self,
        store: Store,
        service_cidrs: Sequence[Network],
        *,
        clock: Callable[[], float],
        rng: random.Random | None = None,
        validate: bool = True,
    ) -> None:
        """Learn from the store what is allocated. `clock` gives seconds since the epoch."""
        self.store = store
        self.pools = [AddressPool(cidr) for cidr in service_cidrs]
        self.node_ports = PortPool()
        self.clock = clock
        self.rng = rng if rng is not None else random.Random()  # noqa: S311  (names, not secrets)
        self._validate = validate
        for item in store.of(SERVICES).items.values():
            self._count_service(Change(SERVICES, item.revision, None, item))
        store.subscribe(SERVICES, self._count_service)

    def _count_service(self, change: Change) -> None:
        old = change.old.obj["spec"] if change.old is not None else {}
        new = change.new.obj["spec"] if change.new is not None else {}
        for pool in self.pools:
            pool.used -= addresses_of(old)
            pool.used |= addresses_of(new)
        self.node_ports.used -= node_ports_of(old)
        self.node_ports.used |= node_ports_of(new)

    def context(self, subresource: str = "", *, validate: bool = True) -> Context:
        """Return what strategies read in a write made now."""
        return Context(
            self.store, self.pools, self.node_ports, self.rng, self.clock(), subresource, validate
        )

    def get(self, resource: Resource, namespace: str, name: str) -> Stored:
        """
        Return an object.

        Raises:
            ApiError: 404.
        """
        found = self.store.of(resource).get(namespace, name)
        if found is None:
            raise errors.not_found(resource, name)
        return found

    def create(
        self, resource: Resource, namespace: str, obj: Obj, options: WriteOptions = DEFAULT_OPTIONS
    ) -> Stored:
        """
        Create an object; takes `obj` over.

        Raises:
            ApiError: 400, 403, 404 of the namespace, 409, 422.
        """
        obj = _accept(resource, namespace, obj)
        metadata = obj["metadata"]
        if not metadata.get("name") and metadata.get("generateName"):
            metadata["name"] = self.generate_name(metadata["generateName"])
        name = metadata.get("name", "")
        if resource.namespaced:
            self._check_namespace(resource, namespace, name)
        metadata["uid"] = self._uid()
        metadata["creationTimestamp"] = timestamp(self.clock())
        for key in ("resourceVersion", "generation", *_KEPT[2:]):
            metadata.pop(key, None)
        if resource.generation != "none":
            metadata["generation"] = 1
        context = self.context(validate=self._wants_checks(obj, options))
        self._prepare(resource, obj, None, context)
        if self.store.of(resource).get(namespace, name) is not None:
            raise errors.already_exists(resource, name)
        self._allocate(resource, obj, None, context)
        return self._commit(resource, obj, options)

    def update(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        obj: Obj,
        options: WriteOptions = DEFAULT_OPTIONS,
        *,
        subresource: str = "",
    ) -> Written:
        """
        Replace an object, or the part of it that a subresource stands for; takes `obj` over.

        Raises:
            ApiError: 400, 404, 409, 422.
        """
        old = self.store.of(resource).get(namespace, name)
        if old is None:
            if resource.create_on_update and not subresource:
                return Written(self.create(resource, namespace, obj, options), created=True)
            raise errors.not_found(resource, name)
        obj = _accept(resource, namespace, obj)
        given = obj["metadata"].setdefault("name", name)
        if given != name:
            message = (
                f"the name of the object ({given}) does not match the name on the URL ({name})"
            )
            raise errors.bad_request(message)
        self._carry_over(resource, obj, old)
        context = self.context(subresource, validate=self._wants_checks(obj, options))
        self._prepare(resource, obj, old.obj, context)
        self._allocate(resource, obj, old.obj, context)
        if not subresource:
            _raise_generation(resource, obj, old.obj)
        obj = _ordered(obj)
        if obj == old.obj:
            return Written(old)
        if meta(obj).get("deletionTimestamp") and is_done(resource, obj) and not options.dry_run:
            return Written(self.store.remove(resource, namespace, name))
        return Written(self._commit(resource, obj, options))

    def patch(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        patch_type: str,
        patch: Any,
        options: WriteOptions = DEFAULT_OPTIONS,
        *,
        subresource: str = "",
    ) -> Written:
        """
        Patch an object in one of the four ways.

        Raises:
            ApiError: as `update`; 415 for another content type.
        """
        old = self.store.of(resource).get(namespace, name)
        if patch_type == APPLY_PATCH:
            return self._apply(resource, namespace, name, patch, options, subresource, old)
        if old is None:
            raise errors.not_found(resource, name)
        document = {"kind": resource.kind, "apiVersion": resource.api_version, **old.obj}
        patched = apply_patch(resource.kind, patch_type, document, patch)
        return self.update(resource, namespace, name, patched, options, subresource=subresource)

    def _apply(
        self,
        resource: Resource,
        namespace: str,
        name: str,
        config: Any,
        options: WriteOptions,
        subresource: str,
        old: Stored | None,
    ) -> Written:
        if not isinstance(config, dict):
            message = "an applied configuration must be an object"
            raise errors.bad_request(message)
        config = without_nulls(config)
        config.setdefault("metadata", {}).setdefault("name", name)
        if meta(config).get("managedFields"):
            message = "metadata.managedFields must be nil"
            raise errors.bad_request(message)
        merged = server_side_apply(
            resource.kind, old.obj if old is not None else None, config,
            manager=options.manager, force=options.force, time=timestamp(self.clock()),
        )  # fmt: skip
        if old is None:
            return Written(self.create(resource, namespace, merged, options), created=True)
        return self.update(resource, namespace, name, merged, options, subresource=subresource)

    def generate_name(self, prefix: str) -> str:
        """Append five random letters, as generateName does."""
        return prefix[:58] + "".join(self.rng.choices(NAME_LETTERS, k=5))

    def _uid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    def _wants_checks(self, obj: Obj, options: WriteOptions) -> bool:
        if not options.validate:
            obj["metadata"].setdefault("annotations", {})[VALIDATE_ANNOTATION] = "false"
        return self._validate and not is_injected(obj)

    def _check_namespace(self, resource: Resource, namespace: str, name: str) -> None:
        found = self.store.of(NAMESPACES).get("", namespace)
        if found is None:
            raise errors.not_found(NAMESPACES, namespace)
        if "deletionTimestamp" in meta(found.obj):
            why = (
                f"unable to create new content in namespace {namespace} because it is being "
                "terminated"
            )
            message = f"namespace {namespace} is being terminated"
            cause = {"reason": "NamespaceTerminating", "message": message,
                     "field": "metadata.namespace"}  # fmt: skip
            raise errors.forbidden(resource, name, why, [cause])

    def _carry_over(self, resource: Resource, obj: Obj, old: Stored) -> None:
        metadata, before = obj["metadata"], meta(old.obj)
        asked = metadata.get("resourceVersion")
        if asked not in (None, "", before["resourceVersion"]):
            raise errors.conflict(resource, old.name)
        uid = metadata.get("uid")
        if uid not in (None, "", before["uid"]):
            why = f"Precondition failed: UID in precondition: {uid}, UID in object meta: "
            raise errors.conflict(resource, old.name, why + before["uid"])
        for key in (*_KEPT, "generation", "resourceVersion", "generateName"):
            if key in before:
                metadata[key] = before[key]
            else:
                metadata.pop(key, None)
        if "managedFields" not in metadata and "managedFields" in before:
            metadata["managedFields"] = before["managedFields"]
        added = set(metadata.get("finalizers") or ()) - set(before.get("finalizers") or ())
        if added and "deletionTimestamp" in before:
            text = "no new finalizers can be added if the object is being deleted"
            cause = errors.forbidden_field("metadata.finalizers", f"{text}: {sorted(added)}")
            raise errors.invalid(resource.kind, resource.group, old.name, [cause])

    def _prepare(self, resource: Resource, obj: Obj, old: Obj | None, context: Context) -> None:
        strategy = strategy_of(resource)
        strategy.prepare(obj, old, context)
        if not context.validate:
            return
        causes = check_metadata(resource, obj) + strategy.validate(obj, old, context)
        if causes:
            name = obj["metadata"].get("name", "")
            raise errors.invalid(resource.kind, resource.group, name, causes)

    def _allocate(self, resource: Resource, obj: Obj, old: Obj | None, context: Context) -> None:
        causes = strategy_of(resource).allocate(obj, old, context)
        if causes and context.validate:
            raise errors.invalid(resource.kind, resource.group, obj["metadata"]["name"], causes)

    def _commit(self, resource: Resource, obj: Obj, options: WriteOptions) -> Stored:
        if options.dry_run:
            return stored_of(thaw(obj), self.store.revision)
        return self.store.put(resource, obj)


def is_injected(obj: Obj) -> bool:
    """Whether an object was stored unchecked on purpose."""
    return (meta(obj).get("annotations") or {}).get(VALIDATE_ANNOTATION) == "false"


def apply_patch(kind: str, patch_type: str, document: Obj, patch: Any) -> Obj:
    """
    Apply one of the three patches that do not need managers.

    Raises:
        ApiError: 400, 415, 422.
    """
    if patch_type == JSON_PATCH:
        return json_patch(document, patch)
    if not isinstance(patch, dict):
        message = "the patch is no object"
        raise errors.bad_request(message)
    if patch_type == MERGE_PATCH:
        merged: Obj = merge_patch(document, patch)
        return merged
    if patch_type == STRATEGIC_PATCH:
        return strategic_merge(kind, document, patch)
    raise errors.unsupported_media_type(patch_type, PATCH_TYPES)


def is_done(resource: Resource, obj: Obj) -> bool:
    """Whether an object being deleted is held by nothing any more."""
    metadata = meta(obj)
    if metadata.get("finalizers") or metadata.get("deletionGracePeriodSeconds"):
        return False
    return resource is not NAMESPACES or not obj["spec"].get("finalizers")


def _accept(resource: Resource, namespace: str, obj: Obj) -> Obj:
    """Check kind, version, shape and namespace of a body; returns it without nulls."""
    if not isinstance(obj, dict):
        message = f"the body is no {resource.kind}"
        raise errors.bad_request(message)
    if resource is CLUSTERNETWORKPOLICIES and "kind" not in obj:
        # A real one knows it by a CustomResourceDefinition only.
        message = "Object 'Kind' is missing"
        raise errors.bad_request(message)
    kind = obj.get("kind", resource.kind)
    version = obj.get("apiVersion", resource.api_version)
    if (kind, version) != (resource.kind, resource.api_version):
        message = (
            f'{kind} in version "{version}" cannot be handled as a {resource.kind}: the object '
            f"provided is unrecognized (must be of type {resource.kind})"
        )
        raise errors.bad_request(message)
    obj = without_nulls(obj)
    check_shape(resource.kind, obj)
    metadata = obj.setdefault("metadata", {})
    if not resource.namespaced:
        metadata.pop("namespace", None)
    elif metadata.setdefault("namespace", namespace) != namespace:
        message = (
            "the namespace of the provided object does not match the namespace sent on the request"
        )
        raise errors.bad_request(message)
    return obj


def _ordered(obj: Obj) -> Obj:
    """Bring an object to the form `stored_of` keeps, for comparison."""
    obj.pop("kind", None)
    obj.pop("apiVersion", None)
    return {"metadata": obj.pop("metadata"), **obj}


def _raise_generation(resource: Resource, obj: Obj, old: Obj) -> None:
    if resource.generation == "none":
        return
    if resource.generation == "spec":
        changed = obj.get("spec") != old.get("spec")
        if resource.kind == "Deployment":
            changed |= meta(obj).get("annotations") != meta(old).get("annotations")
    else:
        changed = any(
            obj.get(key) != old.get(key)
            for key in (obj.keys() | old.keys()) - {"metadata", "kind", "apiVersion"}
        )
        changed |= meta(obj).get("labels") != meta(old).get("labels")
    if changed:
        obj["metadata"]["generation"] = meta(old).get("generation", 0) + 1
