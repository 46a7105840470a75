"""Refusals as metav1.Status, worded as kube-apiserver words them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.values import Obj, encode

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from dunlin_lab.apiserver.resources import Resource


@dataclass(frozen=True, slots=True)
class Cause:
    """One field error of a 422."""

    reason: str
    message: str
    field: str

    def as_obj(self) -> Obj:
        """Render as metav1.StatusCause."""
        return {"reason": self.reason, "message": self.message, "field": self.field}


def invalid_value(field: str, value: object, detail: str) -> Cause:
    """Build field.Invalid."""
    return Cause("FieldValueInvalid", f"Invalid value: {encode(value).decode()}: {detail}", field)


def not_supported(field: str, value: object, supported: Iterable[str]) -> Cause:
    """Build field.NotSupported."""
    options = ", ".join(f'"{item}"' for item in sorted(supported))
    shown = encode(value).decode()
    message = f"Unsupported value: {shown}: supported values: {options}"
    return Cause("FieldValueNotSupported", message, field)


def required(field: str, detail: str = "") -> Cause:
    """Build field.Required."""
    message = f"Required value: {detail}" if detail else "Required value"
    return Cause("FieldValueRequired", message, field)


def duplicate(field: str, value: object) -> Cause:
    """Build field.Duplicate."""
    return Cause("FieldValueDuplicate", f"Duplicate value: {encode(value).decode()}", field)


def forbidden_field(field: str, detail: str) -> Cause:
    """Build field.Forbidden."""
    return Cause("FieldValueForbidden", f"Forbidden: {detail}", field)


class ApiError(Exception):
    """A request is refused; `body` is what the client reads."""

    def __init__(self, code: int, reason: str, message: str, details: Obj | None = None) -> None:
        """Keep what makes the Status."""
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details
        self.metadata: Obj = {}

    def body(self) -> Obj:
        """Render as metav1.Status."""
        status: Obj = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": self.metadata,
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
        }
        if self.details is not None:
            status["details"] = self.details
        status["code"] = self.code
        return status


def success(code: int | None = None, details: Obj | None = None) -> Obj:
    """Build a metav1.Status that reports success."""
    status: Obj = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}
    if details is not None:
        status["details"] = details
    if code is not None:
        status["code"] = code
    return status


def details_of(resource: Resource, name: str) -> Obj:
    """Build the details of a Status about one object; `kind` is the plural, as in the real one."""
    found: Obj = {"name": name}
    if resource.group:
        found["group"] = resource.group
    found["kind"] = resource.plural
    return found


def not_found(resource: Resource, name: str) -> ApiError:
    """404 of an object."""
    message = f'{resource.qualified} "{name}" not found'
    return ApiError(404, "NotFound", message, details_of(resource, name))


def already_exists(resource: Resource, name: str) -> ApiError:
    """409 of a create."""
    message = f'{resource.qualified} "{name}" already exists'
    return ApiError(409, "AlreadyExists", message, details_of(resource, name))


STALE = (
    "the object has been modified; please apply your changes to the latest version and try again"
)


def conflict(resource: Resource, name: str, why: str = STALE) -> ApiError:
    """409 of a write that is based on an old version, or whose precondition fails."""
    message = f'Operation cannot be fulfilled on {resource.qualified} "{name}": {why}'
    return ApiError(409, "Conflict", message, details_of(resource, name))


def invalid(kind: str, group: str, name: str, causes: Sequence[Cause]) -> ApiError:
    """422 with its causes, at least one."""
    assert causes, "a 422 needs a cause"
    texts = [f"{cause.field}: {cause.message}" for cause in causes]
    text = texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"
    shown = f"{kind}.{group}" if group else kind
    details: Obj = {"name": name}
    if group:
        details["group"] = group
    details["kind"] = kind
    details["causes"] = [cause.as_obj() for cause in causes]
    return ApiError(422, "Invalid", f'{shown} "{name}" is invalid: {text}', details)


def bad_request(message: str) -> ApiError:
    """400."""
    return ApiError(400, "BadRequest", message)


def forbidden(resource: Resource, name: str, why: str, causes: Sequence[Obj] = ()) -> ApiError:
    """403."""
    details = details_of(resource, name)
    if causes:
        details["causes"] = list(causes)
    return ApiError(403, "Forbidden", f'{resource.qualified} "{name}" is forbidden: {why}', details)


def expired(message: str) -> ApiError:
    """410: the asked revision is no longer kept."""
    return ApiError(410, "Expired", message)


def unauthorized() -> ApiError:
    """401."""
    return ApiError(401, "Unauthorized", "Unauthorized")


def method_not_allowed() -> ApiError:
    """405."""
    message = "the server does not allow this method on the requested resource"
    return ApiError(405, "MethodNotAllowed", message, {})


def unsupported_media_type(found: str, supported: Iterable[str]) -> ApiError:
    """415."""
    options = ", ".join(supported)
    message = (
        f"the body of the request was in an unknown format ({found}) - accepted media types "
        f"include: {options}"
    )
    return ApiError(415, "UnsupportedMediaType", message, {})
