"""JSON merge patch (RFC 7386) and JSON patch (RFC 6902). Pure: targets are not changed."""

from __future__ import annotations

from typing import Any

from dunlin_lab.apiserver.errors import ApiError, bad_request
from dunlin_lab.apiserver.values import thaw


def merge_patch(target: Any, patch: Any) -> Any:
    """Apply RFC 7386: members merge, null deletes, anything else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge_patch(result.get(key), value)
    return result


def json_patch(target: dict[str, Any], operations: Any) -> dict[str, Any]:
    """
    Apply RFC 6902.

    Raises:
        ApiError: 400 for what is no patch, 422 for one that does not fit the target.
    """
    if not isinstance(operations, list) or not all(isinstance(op, dict) for op in operations):
        message = "json: cannot unmarshal object into Go value of type jsonpatch.Patch"
        raise bad_request(message)
    document: dict[str, Any] = {"": thaw(target)}
    for operation in operations:
        _apply(document, operation)
    result: dict[str, Any] = document[""]
    return result


def _unprocessable(why: str) -> ApiError:
    message = f"the server rejected our request due to an error in our request: {why}"
    return ApiError(422, "Invalid", message, {})


def _apply(document: dict[str, Any], operation: dict[str, Any]) -> None:
    kind, path = operation.get("op"), _pointer(operation.get("path"))
    match kind:
        case "add":
            _add(document, path, operation.get("value"))
        case "remove":
            _remove(document, path)
        case "replace":
            _get(document, path)
            _replace(document, path, operation.get("value"))
        case "move":
            source = _pointer(operation.get("from"))
            value = _get(document, source)
            _remove(document, source)
            _add(document, path, value)
        case "copy":
            value = {"": _get(document, _pointer(operation.get("from")))}
            _add(document, path, thaw(value)[""])
        case "test":
            if _get(document, path) != operation.get("value"):
                why = f"testing value {operation.get('path')} failed"
                raise _unprocessable(why)
        case _:
            why = f"unexpected kind: {kind}"
            raise _unprocessable(why)


def _pointer(text: object) -> list[str]:
    """Split a JSON pointer; the document itself is the member "" of an outer object."""
    if not isinstance(text, str) or (text and not text.startswith("/")):
        why = f"invalid pointer: {text!r}"
        raise _unprocessable(why)
    return [part.replace("~1", "/").replace("~0", "~") for part in text.split("/")]


def _index(container: list[Any], part: str, *, end: bool) -> int:
    if end and part == "-":
        return len(container)
    limit = len(container) + (1 if end else 0)
    if not part.isdigit() or int(part) >= limit:
        why = f"invalid index: {part}"
        raise _unprocessable(why)
    return int(part)


def _get(document: Any, path: list[str]) -> Any:
    value = document
    for part in path:
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list):
            value = value[_index(value, part, end=False)]
        else:
            why = f"missing path: {'/'.join(path)}"
            raise _unprocessable(why)
    return value


def _add(document: Any, path: list[str], value: Any) -> None:
    container = _get(document, path[:-1])
    if isinstance(container, list):
        container.insert(_index(container, path[-1], end=True), value)
    elif isinstance(container, dict):
        container[path[-1]] = value
    else:
        why = f"not a container: {'/'.join(path[:-1])}"
        raise _unprocessable(why)


def _replace(document: Any, path: list[str], value: Any) -> None:
    container = _get(document, path[:-1])
    if isinstance(container, list):
        container[_index(container, path[-1], end=False)] = value
    else:
        container[path[-1]] = value


def _remove(document: Any, path: list[str]) -> None:
    _get(document, path)
    container = _get(document, path[:-1])
    if isinstance(container, list):
        del container[_index(container, path[-1], end=False)]
    else:
        del container[path[-1]]
