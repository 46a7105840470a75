"""What a client asks, read from its request; what it gets. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl

import yaml

from dunlin_lab.apiserver import errors
from dunlin_lab.apiserver.deletion import DeleteOptions
from dunlin_lab.apiserver.protobuf import MEDIA_TYPE, decode_protobuf
from dunlin_lab.apiserver.registry import WriteOptions
from dunlin_lab.apiserver.resources import BY_NAME, Resource
from dunlin_lab.apiserver.values import decode, encode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from dunlin_lab.apiserver.tables import IncludeObject

Form = Literal["object", "table", "metadata"]
JSON = "application/json"
_BODY_TYPES = (JSON, "application/yaml", MEDIA_TYPE)


@dataclass(frozen=True, slots=True)
class Response:
    """One whole answer."""

    status: int
    body: bytes
    content_type: str = JSON


def json_response(value: object, status: int = 200) -> Response:
    """Answer with JSON."""
    return Response(status, encode(value))


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names; `name` empty is the collection, `namespace` empty is all of them."""

    resource: Resource
    namespace: str = ""
    name: str = ""
    subresource: str = ""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, its body read."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def content_type(self) -> str:
        """The media type of the body, without parameters."""
        return self.headers.get("content-type", JSON).partition(";")[0].strip()

    def flag(self, name: str) -> bool:
        """Whether a boolean parameter is on."""
        return self.query.get(name, "") in ("1", "true", "True")

    def seconds(self, name: str) -> int | None:
        """
        Read a whole number that is not negative.

        Raises:
            ApiError: 400.
        """
        text = self.query.get(name, "")
        if not text:
            return None
        if not text.isdigit():
            message = f'unable to decode query: strconv.ParseInt: parsing "{text}": invalid syntax'
            raise errors.bad_request(message)
        return int(text)

    @property
    def form(self) -> Form:
        """How the client takes objects; it must take JSON in some form."""
        accept = self.headers.get("accept", "")
        for part in accept.split(","):
            if not part.strip().startswith(JSON):
                continue
            if "as=Table" in part and "v=v1beta1" not in part:
                return "table"
            if "as=PartialObjectMetadata" in part:
                return "metadata"
            return "object"
        return "object"

    @property
    def accepts_json(self) -> bool:
        """Whether JSON is among what the client takes."""
        accept = self.headers.get("accept", "")
        return not accept or any(kind in accept for kind in (JSON, "*/*", "application/*"))

    @property
    def include(self) -> IncludeObject:
        """What a Table row carries of its object."""
        match self.query.get("includeObject"):
            case "None":
                return "None"
            case "Object":
                return "Object"
            case _:
                return "Metadata"

    def payload(self) -> Any:
        """
        Decode the body, JSON or YAML.

        Raises:
            ApiError: 400, 415.
        """
        kind = self.content_type
        if kind == MEDIA_TYPE:
            return decode_protobuf(self.body)
        if self.method != "PATCH" and kind not in _BODY_TYPES:
            raise errors.unsupported_media_type(kind, _BODY_TYPES)
        try:
            if "yaml" in kind and self.body.lstrip()[:1] not in (b"{", b"["):
                return yaml.safe_load(self.body)
            return decode(self.body)
        except (ValueError, yaml.YAMLError) as error:
            message = f"the object provided is unrecognized: {error}"
            raise errors.bad_request(message) from error

    def write_options(self) -> WriteOptions:
        """Read the parameters of a create, an update or a patch."""
        agent = self.headers.get("user-agent", "").partition("/")[0]
        return WriteOptions(
            dry_run=self.query.get("dryRun", "") == "All",
            validate=self.query.get("dunlin-validate") != "false",
            manager=self.query.get("fieldManager") or agent or "unknown",
            force=self.flag("force"),
        )

    def delete_options(self) -> DeleteOptions:
        """
        Read DeleteOptions from the body and, failing that, the parameters.

        Raises:
            ApiError: 400, 415.
        """
        body = (self.payload() or {}) if self.body.strip() else {}
        if not isinstance(body, dict):
            message = "the body is no DeleteOptions"
            raise errors.bad_request(message)
        grace = body.get("gracePeriodSeconds")
        grace = grace if grace is not None else self.seconds("gracePeriodSeconds")
        if grace is not None and not isinstance(grace, int):
            message = "gracePeriodSeconds must be a number"
            raise errors.bad_request(message)
        orphan = body.get("orphanDependents", self.flag("orphanDependents"))
        propagation = body.get("propagationPolicy") or self.query.get("propagationPolicy")
        before = body.get("preconditions") or {}
        return DeleteOptions(
            grace_seconds=grace,
            propagation=propagation or ("Orphan" if orphan else "Background"),
            uid=before.get("uid"),
            revision=before.get("resourceVersion"),
            dry_run="All" in (body.get("dryRun") or ()) or self.query.get("dryRun") == "All",
        )


def parse_query(raw: bytes) -> dict[str, str]:
    """Read a query string; of a repeated parameter the first counts."""
    found: dict[str, str] = {}
    for key, value in parse_qsl(raw.decode("latin-1"), keep_blank_values=True):
        found.setdefault(key, value)
    return found


def parse_target(path: str) -> Target | None:
    """
    Read a path below /api/v1 or /apis/group/version.

    Returns:
        None when it names no resource this server has.
    """
    parts = [part for part in path.split("/") if part]
    if parts[:1] == ["api"]:
        group, version, rest = "", parts[1] if len(parts) > 1 else "", parts[2:]
    elif parts[:1] == ["apis"] and len(parts) > 2:
        group, version, rest = parts[1], parts[2], parts[3:]
    else:
        return None
    namespace = ""
    if rest[:1] == ["namespaces"] and len(rest) > 2 and rest[2] not in ("status", "finalize"):
        namespace, rest = rest[1], rest[2:]
    resource = BY_NAME.get((group, version, rest[0])) if rest else None
    if resource is None or len(rest) > 3:
        return None
    if namespace and not resource.namespaced:
        return None
    name, subresource = [*rest[1:], "", ""][:2]
    if name and resource.namespaced and not namespace:
        return None
    return Target(resource, namespace, name, subresource)
