"""
Server-side apply, simplified. Pure.

Only managers of operation Apply own fields: a field that a manager applied before and leaves out
now is removed, and a field another Apply manager owns with another value is a conflict unless
forced. Writers of operation Update are not tracked, so they neither own nor lose fields
(docs/LIMITS.md). Field sets are held as FieldsV1, the form managedFields shows.
"""

from __future__ import annotations

import json
from typing import Any

from dunlin_lab.apiserver.errors import ApiError
from dunlin_lab.apiserver.merge_keys import MergeList, Path, merge_lists
from dunlin_lab.apiserver.values import Obj, meta, thaw

_UNOWNED = {("apiVersion",), ("kind",)}
_UNOWNED_META = {"name", "namespace", "uid", "resourceVersion", "creationTimestamp",
                 "generation", "managedFields", "deletionTimestamp"}  # fmt: skip


def server_side_apply(
    kind: str, live: Obj | None, config: Obj, *, manager: str, force: bool, time: str
) -> Obj:
    """
    Merge an applied configuration into the live object.

    Returns:
        The new object, with managedFields brought up to date.

    Raises:
        ApiError: 409 naming every field in conflict.
    """
    fields = _fields_of(kind, (), config)
    entries: list[Obj] = [dict(entry) for entry in meta(live or {}).get("managedFields") or ()]
    applied = [entry for entry in entries if entry.get("operation") == "Apply"]
    others = [entry for entry in applied if entry.get("manager") != manager]
    mine = next((entry for entry in applied if entry.get("manager") == manager), None)
    result: Obj = thaw(live) if live is not None else {}
    clashes = _conflicts(kind, others, live or {}, config, fields)
    if clashes and not force:
        raise _conflict_error(clashes)
    for entry, path in clashes:
        entry["fieldsV1"] = _without(entry["fieldsV1"], path)
    if mine is not None:
        kept = [fields, *(entry["fieldsV1"] for entry in others)]
        result = _drop_left_out(kind, (), result, mine["fieldsV1"], kept)
    result = _overlay(kind, (), result, config)
    entry = {
        "manager": manager, "operation": "Apply", "apiVersion": config.get("apiVersion"),
        "time": time, "fieldsType": "FieldsV1", "fieldsV1": fields,
    }  # fmt: skip
    if mine is not None and mine["fieldsV1"] == fields:
        entry["time"] = mine["time"]  # an apply that changes nothing makes no new revision
    kept_entries = [item for item in entries if item is not mine and item.get("fieldsV1")]
    result.setdefault("metadata", {})["managedFields"] = [*kept_entries, entry]
    return result


def _owned(path: Path) -> bool:
    if path in _UNOWNED:
        return False
    return not (len(path) == 2 and path[0] == "metadata" and path[1] in _UNOWNED_META)


def _item_key(rule: MergeList, item: Any) -> str:
    if not rule.key:
        return f"v:{json.dumps(item, separators=(',', ':'))}"
    found = {key: item[key] for key in rule.keys if isinstance(item, dict) and key in item}
    if "protocol" in rule.keys:
        found.setdefault("protocol", "TCP")
    return f"k:{json.dumps(found, separators=(',', ':'), sort_keys=True)}"


def _fields_of(kind: str, path: Path, value: Any) -> Obj:
    """Return the FieldsV1 of a value; an atomic value has none below it."""
    if isinstance(value, dict):
        below = {
            key: _fields_of(kind, (*path, key), item)
            for key, item in value.items()
            if _owned((*path, key))
        }
        if not path and not below.get("metadata"):
            below.pop("metadata", None)  # nothing in it is owned by anybody
        return {f"f:{key}": item for key, item in below.items()}
    rule = merge_lists(kind).get(path)
    if not isinstance(value, list) or rule is None:
        return {}
    return {
        _item_key(rule, item): {".": {}, **_fields_of(kind, path, item)} if rule.key else {}
        for item in value
    }


def _overlay(kind: str, path: Path, live: Any, config: Any) -> Any:
    if isinstance(config, dict):
        result = dict(live) if isinstance(live, dict) else {}
        for key, value in config.items():
            result[key] = _overlay(kind, (*path, key), result.get(key), value)
        return result
    rule = merge_lists(kind).get(path)
    if not isinstance(config, list) or rule is None or not isinstance(live, list):
        return config
    result_list = list(live)
    places = {_item_key(rule, item): index for index, item in enumerate(live)}
    for item in config:
        at = places.get(_item_key(rule, item))
        if at is None:
            result_list.append(item)
        else:
            result_list[at] = _overlay(kind, path, result_list[at], item)
    return result_list


def _drop_left_out(kind: str, path: Path, live: Any, before: Obj, kept: list[Obj]) -> Any:
    """Remove from `live` what `before` owns and no set of `kept` does."""
    if isinstance(live, dict):
        result: Obj = {}
        for key, value in live.items():
            name = f"f:{key}"
            if name not in before:
                result[key] = value
                continue
            below = [fields[name] for fields in kept if name in fields]
            if below or not _owned((*path, key)):
                result[key] = _drop_left_out(kind, (*path, key), value, before[name], below)
        return result
    rule = merge_lists(kind).get(path)
    if not isinstance(live, list) or rule is None:
        return live
    items = []
    for item in live:
        name = _item_key(rule, item)
        below = [fields[name] for fields in kept if name in fields]
        if name not in before:
            items.append(item)
        elif below:
            items.append(_drop_left_out(kind, path, item, before[name], below))
    return items


def _conflicts(
    kind: str, others: list[Obj], live: Obj, config: Obj, fields: Obj
) -> list[tuple[Obj, tuple[str, ...]]]:
    """Return (the entry of the other manager, the path) of each leaf in conflict."""
    found = []
    for path in _leaves(fields):
        for entry in others:
            if not _has(entry["fieldsV1"], path):
                continue
            if _value_at(kind, live, path) != _value_at(kind, config, path):
                found.append((entry, path))
    return found


def _leaves(fields: Obj, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, below in fields.items():
        if name == ".":
            continue
        inner = {key: value for key, value in below.items() if key != "."}
        found += _leaves(inner, (*path, name)) if inner else [(*path, name)]
    return found


def _has(fields: Obj, path: tuple[str, ...]) -> bool:
    at: Any = fields
    for name in path:
        if name not in at:
            return False
        at = at[name]
    return not {key for key in at if key != "."}


def _value_at(kind: str, obj: Any, path: tuple[str, ...]) -> Any:
    value = obj
    names: Path = ()
    for name in path:
        if name.startswith("f:"):
            names = (*names, name[2:])
            value = value.get(name[2:]) if isinstance(value, dict) else None
        elif isinstance(value, list):
            rule = merge_lists(kind)[names]
            value = next((item for item in value if _item_key(rule, item) == name), None)
    return value


def _without(fields: Obj, path: tuple[str, ...]) -> Obj:
    result = dict(fields)
    if len(path) == 1:
        result.pop(path[0], None)
    elif path[0] in result:
        below = _without(result[path[0]], path[1:])
        if below and below != {".": {}}:
            result[path[0]] = below
        else:
            del result[path[0]]
    return result


def _conflict_error(clashes: list[tuple[Obj, tuple[str, ...]]]) -> ApiError:
    causes = []
    for entry, path in clashes:
        field = "".join(
            f".{name[2:]}" if name.startswith("f:") else f"[{name[2:].strip('{}')}]"
            for name in path
        )
        message = f'conflict with "{entry["manager"]}" using {entry.get("apiVersion")}'
        causes.append({"reason": "FieldManagerConflict", "message": message, "field": field})
    count = len(causes)
    head = f"Apply failed with {count} conflict{'s' if count > 1 else ''}"
    lines = "; ".join(f"{cause['message']}: {cause['field']}" for cause in causes)
    return ApiError(409, "Conflict", f"{head}: {lines}", {"causes": causes})
