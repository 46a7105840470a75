"""Discovery and OpenAPI documents, made from the resource table."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dunlin_lab.apiserver.resources import RESOURCES, Resource, Subresource

if TYPE_CHECKING:
    from dunlin_lab.apiserver.values import Obj

VERSION: Obj = {
    "major": "1",
    "minor": "36",
    "emulationMajor": "1",
    "emulationMinor": "36",
    "minCompatibilityMajor": "1",
    "minCompatibilityMinor": "35",
    "gitVersion": "v1.36.2+dunlin-lab",
    "gitCommit": "",
    "gitTreeState": "clean",
    "buildDate": "2026-08-21T00:00:00Z",
    "goVersion": "",
    "compiler": "",
    "platform": "linux/amd64",
}
AGGREGATED_V2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
AGGREGATED_V2BETA1 = "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"


def _groups() -> list[tuple[str, str]]:
    """Return (group, version) of every named group, in table order."""
    found = dict.fromkeys((item.group, item.version) for item in RESOURCES if item.group)
    return list(found)


def core_versions(server: str) -> Obj:
    """Answer /api; `server` is the host and port the client used."""
    addresses = [{"clientCIDR": "0.0.0.0/0", "serverAddress": server}]
    return {"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": addresses}


def _group(group: str, version: str) -> Obj:
    shown = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "versions": [shown], "preferredVersion": shown}


def groups() -> Obj:
    """Answer /apis."""
    found = [_group(group, version) for group, version in _groups()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}


def group_of(name: str) -> Obj | None:
    """Answer /apis/<group>, None for an unknown one."""
    for group, version in _groups():
        if group == name:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(group, version)}
    return None


def _resource_entry(resource: Resource) -> Obj:
    entry: Obj = {
        "name": resource.plural, "singularName": resource.singular,
        "namespaced": resource.namespaced, "kind": resource.kind, "verbs": list(resource.verbs),
    }  # fmt: skip
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    return entry


def _subresource_entry(resource: Resource, sub: Subresource) -> Obj:
    entry: Obj = {"name": f"{resource.plural}/{sub.name}", "singularName": "",
                  "namespaced": resource.namespaced}  # fmt: skip
    if sub.group:
        entry["group"], entry["version"] = sub.group, sub.version
    return {**entry, "kind": sub.kind or resource.kind, "verbs": list(sub.verbs)}


def resources_of(group: str, version: str) -> Obj | None:
    """Answer /api/v1 and /apis/<group>/<version>, None for an unknown one."""
    found = [item for item in RESOURCES if (item.group, item.version) == (group, version)]
    if not found:
        return None
    entries = []
    for resource in sorted(found, key=lambda item: item.plural):
        entries.append(_resource_entry(resource))
        entries += [_subresource_entry(resource, sub) for sub in resource.subresources]
    shown: Obj = {"kind": "APIResourceList"}
    if group:
        shown["apiVersion"] = "v1"
    return {**shown, "groupVersion": found[0].api_version, "resources": entries}


def _aggregated_resource(resource: Resource) -> Obj:
    none = {"group": "", "version": ""}
    entry: Obj = {
        "resource": resource.plural, "responseKind": {**none, "kind": resource.kind},
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular, "verbs": list(resource.verbs),
    }  # fmt: skip
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    if resource.subresources:
        entry["subresources"] = [
            {
                "subresource": sub.name,
                "responseKind": {
                    "group": sub.group, "version": sub.version, "kind": sub.kind or resource.kind,
                },
                "verbs": list(sub.verbs),
            }
            for sub in resource.subresources
        ]  # fmt: skip
    return entry


def aggregated(api_version: str, *, core: bool) -> Obj:
    """Answer /api or /apis where the client takes aggregated discovery of this version."""
    items = []
    for group, version in [("", "v1")] if core else _groups():
        found = sorted(
            (item for item in RESOURCES if item.group == group), key=lambda item: item.plural
        )
        shown = {"version": version, "resources": [_aggregated_resource(item) for item in found],
                 "freshness": "Current"}  # fmt: skip
        items.append({"metadata": {"name": group} if group else {}, "versions": [shown]})
    return {
        "kind": "APIGroupDiscoveryList", "apiVersion": f"apidiscovery.k8s.io/{api_version}",
        "metadata": {}, "items": items,
    }  # fmt: skip


def openapi_v3_index() -> Obj:
    """Answer /openapi/v3: one document for each group and version."""
    paths = {"api/v1": {"serverRelativeURL": "/openapi/v3/api/v1"}}
    for group, version in _groups():
        path = f"apis/{group}/{version}"
        paths[path] = {"serverRelativeURL": f"/openapi/v3/{path}"}
    return {"paths": paths}


def openapi_v3(path: str) -> Obj | None:
    """
    Answer /openapi/v3/<path>, None for an unknown one.

    It says just enough for kubectl: that a PATCH of each kind takes fieldValidation and dryRun, so
    that kubectl leaves validation to the server.
    """
    query = [
        {"name": name, "in": "query", "schema": {"type": "string"}}
        for name in ("dryRun", "fieldManager", "fieldValidation", "force")
    ]
    paths: Obj = {}
    for resource in RESOURCES:
        if resource.prefix != f"/{path}":
            continue
        scope = "/namespaces/{namespace}" if resource.namespaced else ""
        kind = {"group": resource.group, "version": resource.version, "kind": resource.kind}
        operation = {"parameters": query, "responses": {}, "x-kubernetes-group-version-kind": kind}
        paths[f"{resource.prefix}{scope}/{resource.plural}/{{name}}"] = {
            "patch": {**operation, "x-kubernetes-action": "patch"}
        }
    if not paths:
        return None
    info = {"title": "Dunlin lab", "version": VERSION["gitVersion"]}
    return {"openapi": "3.0.0", "info": info, "paths": paths, "components": {"schemas": {}}}


def openapi_v2() -> Obj:
    """Answer /openapi/v2 in JSON: an empty document, so that old clients skip validation."""
    info = {"title": "Dunlin lab", "version": VERSION["gitVersion"]}
    return {"swagger": "2.0", "info": info, "paths": {}, "definitions": {}}


def openapi_v2_protobuf() -> bytes:
    """Encode the same document as gnostic's openapi.v2.Document, which kubectl 1.20 asks for."""

    def field(number: int, payload: bytes) -> bytes:
        assert len(payload) < 128, "one length byte"
        return bytes((number << 3 | 2, len(payload))) + payload

    info = field(1, b"Dunlin lab") + field(2, VERSION["gitVersion"].encode())
    return field(1, b"2.0") + field(2, info) + field(8, b"") + field(9, b"")
