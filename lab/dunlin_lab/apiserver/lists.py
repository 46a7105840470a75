"""Lists: selection, pagination at one revision, and the JSON of a list."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from dunlin_lab.apiserver import errors
from dunlin_lab.apiserver.selectors import (
    FieldSelector,
    LabelSelector,
    parse_fields,
    parse_labels,
)
from dunlin_lab.apiserver.tables import table
from dunlin_lab.apiserver.values import Obj, decode, encode, labels_of, meta

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dunlin_lab.apiserver.requests import Request, Target
    from dunlin_lab.apiserver.resources import Resource
    from dunlin_lab.apiserver.store import Store, Stored

_TOO_OLD = (
    "The provided continue parameter is too old to display a consistent list result. You can "
    "start a new list without the continue parameter, or use the continue token in this response "
    "to retrieve the remainder of the results. Continuing with the provided token results in an "
    "inconsistent list - objects that were created, modified, or deleted between the time the "
    "first chunk was returned and now may show up in the list."
)
_LATEST = -1
"""The revision of a continue token that goes on at whatever is current."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which objects of a kind a list or a watch is about."""

    namespace: str
    labels: LabelSelector
    fields: FieldSelector

    @property
    def selective(self) -> bool:
        """Whether it leaves out anything within its namespace."""
        return bool(self.labels.requirements or self.fields.terms)

    def matches(self, item: Stored) -> bool:
        """Whether an object is in it."""
        if self.namespace and item.namespace != self.namespace:
            return False
        if self.labels.requirements and not self.labels.matches(labels_of(item.obj)):
            return False
        return not self.fields.terms or self.fields.matches(item.obj)


def selection_of(request: Request, target: Target) -> Selection:
    """
    Read the selectors of a request.

    Raises:
        ApiError: 400.
    """
    labels = parse_labels(request.query.get("labelSelector", ""))
    fields = parse_fields(request.query.get("fieldSelector", ""), target.resource)
    if target.name:
        fields = FieldSelector((*fields.terms, ("metadata.name", target.name, True)))
    return Selection(target.namespace, labels, fields)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list; `token` empty is the last one, `remaining` None is unknown."""

    revision: int
    items: list[Stored]
    token: str = ""
    remaining: int | None = None

    def metadata(self) -> Obj:
        """Return its metav1.ListMeta."""
        found: Obj = {"resourceVersion": str(self.revision)}
        if self.token:
            found["continue"] = self.token
        if self.remaining is not None:
            found["remainingItemCount"] = self.remaining
        return found


def _token(revision: int, start: str) -> str:
    shown = encode({"v": "meta.k8s.io/v1", "rv": revision, "start": f"/{start}\0"})
    return base64.urlsafe_b64encode(shown).rstrip(b"=").decode()


def _read_token(token: str) -> tuple[int, str]:
    try:
        raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        found = decode(raw)
        return int(found["rv"]), str(found["start"])[1:].removesuffix("\0")
    except (ValueError, KeyError, TypeError, msgspec.DecodeError) as error:
        message = "continue key is not valid"
        raise errors.bad_request(message) from error


def _revision_of(request: Request, store: Store) -> int:
    """Return the revision a list shall show."""
    asked = request.seconds("resourceVersion") or 0
    if asked > store.revision:
        message = f"Too large resource version: {asked}, current: {store.revision}"
        details: Obj = {
            "causes": [
                {"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}
            ],
            "retryAfterSeconds": 1,
        }
        raise errors.ApiError(504, "Timeout", message, details)
    exact = request.query.get("resourceVersionMatch") == "Exact"
    return asked if exact else store.revision


def list_page(store: Store, request: Request, target: Target, selection: Selection) -> Page:
    """
    Return the page of a list that a request asks for.

    Raises:
        ApiError: 400, 410 when its revision is no longer kept, 504 when it is in the future.
    """
    collection = store.of(target.resource)
    limit = request.seconds("limit") or 0
    prefix = f"{target.namespace}/" if target.namespace else ""
    token = request.query.get("continue", "")
    revision, after = _read_token(token) if token else (_revision_of(request, store), "")
    revision = store.revision if revision == _LATEST else revision
    after = prefix + after if after else ""
    try:
        found: Iterator[Stored] = collection.scan(revision, prefix, after)
        if selection.selective:
            found = (item for item in found if selection.matches(item))
        items = list(islice(found, limit) if limit else found)
        following = next(found, None) if limit else None
    except errors.ApiError as error:
        if token:
            error.message = _TOO_OLD
            error.metadata = {"continue": _token(_LATEST, after.removeprefix(prefix))}
        raise
    if following is None:
        return Page(revision, items)
    last = items[-1].key
    left = None if selection.selective else collection.count_after(revision, prefix, last)
    return Page(revision, items, _token(revision, last.removeprefix(prefix)), left)


def render_list(resource: Resource, page: Page) -> bytes:
    """Return the JSON of a list, from the JSON kept of each object."""
    head = encode({"kind": resource.list_kind, "apiVersion": resource.api_version,
                   "metadata": page.metadata()})  # fmt: skip
    return head[:-1] + b',"items":[' + b",".join(item.body for item in page.items) + b"]}"


def render_form(
    request: Request, resource: Resource, page: Page, now: float, *, single: bool = False
) -> bytes:
    """Return a list, or its only object, in the form the client takes."""
    if request.form == "table":
        metadata = {"resourceVersion": str(page.items[0].revision)} if single else page.metadata()
        return encode(table(resource, page.items, metadata, now=now, include=request.include))
    if request.form == "metadata":
        parts = [partial_metadata(item) for item in page.items]
        if single:
            return encode(parts[0])
        return encode({"kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1",
                       "metadata": page.metadata(), "items": parts})  # fmt: skip
    return page.items[0].full(resource) if single else render_list(resource, page)


def partial_metadata(item: Stored) -> Obj:
    """Return the PartialObjectMetadata of an object."""
    return {"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
            "metadata": meta(item.obj)}  # fmt: skip
