"""Strategic merge patch, with its directives. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dunlin_lab.apiserver.errors import bad_request
from dunlin_lab.apiserver.merge_keys import merge_lists

if TYPE_CHECKING:
    from dunlin_lab.apiserver.merge_keys import Path
    from dunlin_lab.apiserver.values import Obj

_ORDER = "$setElementOrder/"
_DELETE = "$deleteFromPrimitiveList/"


def strategic_merge(kind: str, target: Obj, patch: Any) -> Obj:
    """
    Apply a strategic merge patch to an object of a kind; the target is not changed.

    Raises:
        ApiError: 400 for what is no such patch.
    """
    if not isinstance(patch, dict):
        message = "json: cannot unmarshal array into Go value of type map[string]interface {}"
        raise bad_request(message)
    return _merge_map(kind, (), target, patch)


def _merge_map(kind: str, path: Path, target: Obj, patch: Obj) -> Obj:
    directive = patch.get("$patch")
    if directive == "replace":
        return {key: value for key, value in patch.items() if key != "$patch"}
    if directive == "delete":
        return {}
    if directive not in (None, "merge"):
        message = f"Unknown patch type found: {directive}"
        raise bad_request(message)
    result = dict(target)
    kept = patch.get("$retainKeys")
    if kept is not None:
        result = {key: value for key, value in result.items() if key in kept}
    for key, value in patch.items():
        if key.startswith("$"):
            continue
        if value is None:
            result.pop(key, None)
        else:
            result[key] = _merge_value(kind, (*path, key), result.get(key), value)
    _delete_primitives(result, patch)
    _order_lists(kind, path, result, patch)
    return result


def _merge_value(kind: str, path: Path, target: Any, patch: Any) -> Any:
    if isinstance(patch, dict):
        return _merge_map(kind, path, target if isinstance(target, dict) else {}, patch)
    rule = merge_lists(kind).get(path)
    if not isinstance(patch, list) or rule is None:
        return patch
    base = target if isinstance(target, list) else []
    if not rule.key:
        return base + [value for value in patch if value not in base]
    return _merge_list(kind, path, base, patch)


def _merge_list(kind: str, path: Path, target: list[Obj], patch: list[Any]) -> list[Obj]:
    key = merge_lists(kind)[path].key
    result = list(target)
    for element in patch:
        if not isinstance(element, dict):
            message = f"{'.'.join(path)}: an element of a list merged by {key} is no object"
            raise bad_request(message)
        directive = element.get("$patch")
        if directive == "replace":
            return [item for item in patch if "$patch" not in item]
        if key not in element:
            message = f"map: {element} does not contain declared merge key: {key}"
            raise bad_request(message)
        at = next((i for i, item in enumerate(result) if item.get(key) == element[key]), None)
        if directive == "delete":
            result = [item for item in result if item.get(key) != element[key]]
        elif at is None:
            result.append(_merge_map(kind, path, {}, element))
        else:
            result[at] = _merge_map(kind, path, result[at], element)
    return result


def _delete_primitives(result: Obj, patch: Obj) -> None:
    for key, values in patch.items():
        if key.startswith(_DELETE):
            name = key.removeprefix(_DELETE)
            result[name] = [value for value in result.get(name) or () if value not in values]


def _order_lists(kind: str, path: Path, result: Obj, patch: Obj) -> None:
    """Order lists as `$setElementOrder` says; elements it does not name keep their order, last."""
    for key, order in patch.items():
        if not key.startswith(_ORDER):
            continue
        name = key.removeprefix(_ORDER)
        rule = merge_lists(kind).get((*path, name))
        if rule is None or not isinstance(result.get(name), list):
            continue
        ranks = [item.get(rule.key) if rule.key else item for item in order]

        def rank(item: Any, key: str = rule.key, ranks: list[Any] = ranks) -> int:
            value = item.get(key) if key else item
            return ranks.index(value) if value in ranks else len(ranks)

        result[name] = sorted(result[name], key=rank)
