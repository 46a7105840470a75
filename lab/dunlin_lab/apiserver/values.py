"""JSON objects as this server handles them: decoding, encoding, copies, small readers."""

from datetime import UTC, datetime
from typing import Any, TypeAlias

import msgspec

Obj: TypeAlias = dict[str, Any]
"""A decoded JSON object. One held by the store is never changed: `thaw` it first."""

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder()


def encode(value: object) -> bytes:
    """Compact JSON."""
    return _encoder.encode(value)


def decode(data: bytes) -> Any:
    """
    Decode JSON.

    Raises:
        ValueError: not JSON (msgspec.DecodeError is one).
    """
    return _decoder.decode(data)


def thaw(obj: Obj) -> Obj:
    """Copy deeply; the copy may be changed."""
    copy: Obj = _decoder.decode(_encoder.encode(obj))
    return copy


def without_nulls(value: Any) -> Any:
    """Drop object members that are null, at every depth: the API treats them as absent."""
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    if isinstance(value, list):
        return [without_nulls(v) for v in value]
    return value


def meta(obj: Obj) -> Obj:
    """Return the metadata of an object, empty when it has none."""
    found: Obj = obj.get("metadata") or {}
    return found


def labels_of(obj: Obj) -> dict[str, str]:
    """Return the labels, empty when there are none."""
    found: dict[str, str] = meta(obj).get("labels") or {}
    return found


def timestamp(now: float) -> str:
    """Render seconds since the epoch as RFC 3339 in whole seconds, as metav1.Time is."""
    return datetime.fromtimestamp(int(now), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def seconds_of(stamp: str) -> float:
    """
    Read an RFC 3339 time.

    Raises:
        ValueError: not such a time.
    """
    return datetime.fromisoformat(stamp).timestamp()


def key_of(namespace: str, name: str) -> str:
    """Return the store key, ordered as etcd orders its paths."""
    return f"{namespace}/{name}" if namespace else name


def controller_of(obj: Obj) -> Obj | None:
    """Return the ownerReference that says controller: true, if any."""
    for reference in meta(obj).get("ownerReferences") or ():
        if reference.get("controller"):
            found: Obj = reference
            return found
    return None


def condition(obj: Obj, kind: str) -> Obj | None:
    """Return the status condition of this type, if present."""
    for found in (obj.get("status") or {}).get("conditions") or ():
        if found.get("type") == kind:
            result: Obj = found
            return result
    return None


def is_ready(obj: Obj) -> bool:
    """Whether the Ready condition (of a Pod or a Node) is True."""
    found = condition(obj, "Ready")
    return found is not None and found.get("status") == "True"
