"""
Kubernetes JSON object -> fact. Pure, strict about what Dunlin uses, blind to the rest.

A bad part (one port, one address) is left out and reported; an object whose meaning is lost gives
no fact, and whoever calls keeps the last good one.
"""

import re
from collections.abc import Callable
from typing import Any

import msgspec

from dunlin import wire
from dunlin.events.facts import Fact, Meta
from dunlin_watcher import kube
from dunlin_watcher.kinds import KINDS, describe, key_of
from dunlin_watcher.normalise.cluster import (
    cluster_network_policy,
    namespace,
    network_policy,
    node,
    service_cidr,
)
from dunlin_watcher.normalise.endpointslice import endpoint_slice
from dunlin_watcher.normalise.pod import pod
from dunlin_watcher.normalise.reader import Problem, Reader, item
from dunlin_watcher.normalise.service import service
from dunlin_watcher.normalise.unsupported import unsupported_fields

__all__ = ["Identity", "Normalised", "Problem", "UnreadableError", "identify", "normalise"]

TRIGGER_ANNOTATION = "endpoints.kubernetes.io/last-change-trigger-time"

_Builder = Callable[[Reader, str, str, Any], Fact | None]
_BUILDERS: dict[str, tuple[type[kube.Object], _Builder]] = {
    "node": (kube.Node, node),
    "namespace": (kube.Object, namespace),
    "servicecidr": (kube.ServiceCIDR, service_cidr),
    "service": (kube.Service, service),
    "endpointslice": (kube.EndpointSlice, endpoint_slice),
    "networkpolicy": (kube.NetworkPolicy, network_policy),
    "clusternetworkpolicy": (kube.NetworkPolicy, cluster_network_policy),
    "pod": (kube.Pod, pod),
}
_DECODERS = {kind: msgspec.json.Decoder(shape) for kind, (shape, _) in _BUILDERS.items()}
_OBJECT = msgspec.json.Decoder(kube.Object)
_AT = re.compile(r"^(?P<reason>.*?)(?: - at `\$?\.?(?P<field>.*)`)?$", re.DOTALL)


class UnreadableError(ValueError):
    """An object that does not even say who it is."""


class Identity(msgspec.Struct, frozen=True, gc=False):
    """Which object, in which version. `key`: `<namespace>/<name>` or `<name>`."""

    key: str
    uid: str
    resource_version: str


class Normalised(msgspec.Struct, frozen=True):
    """
    What became of one object.

    `fact` without `meta`; None if the object is bad as a whole. `problems`: what was left out.
    """

    identity: Identity
    fact: Fact | None
    trigger_ms: int | None = None
    problems: tuple[Problem, ...] = ()
    unsupported: tuple[str, ...] = ()

    def meta(self, observed_ms: int) -> Meta:
        """Where the fact comes from, seen at that Unix time in milliseconds."""
        return Meta(
            uid=self.identity.uid,
            resource_version=self.identity.resource_version,
            observed_ms=observed_ms,
            trigger_ms=self.trigger_ms,
        )


def problem_of(error: msgspec.DecodeError) -> Problem:
    """What msgspec says, as field and reason."""
    found = _AT.match(str(error))
    assert found is not None
    word = "type" if isinstance(error, msgspec.ValidationError) else "json"
    return Problem(found["field"] or "object", found["reason"].replace("`", ""), word)


def identity_of(kind: str, meta: kube.ObjectMeta) -> Identity:
    """
    Which object this metadata belongs to.

    Raises:
        UnreadableError: no name, or no namespace where the kind has one.
    """
    name, namespace_ = meta.name, meta.namespace
    if not isinstance(name, str) or not name:
        raise UnreadableError(f"{kind}: metadata.name: missing")
    if not KINDS[kind].namespaced:
        namespace_ = ""
    elif not isinstance(namespace_, str) or not namespace_:
        raise UnreadableError(f"{kind} {name}: metadata.namespace: missing")
    uid = meta.uid if isinstance(meta.uid, str) else ""
    version = meta.resource_version if isinstance(meta.resource_version, str) else ""
    return Identity(key_of(namespace_, name), uid, version)


def identify(kind: str, raw: bytes | msgspec.Raw) -> Identity:
    """
    Which object this is, without looking at the rest.

    Raises:
        UnreadableError: it does not say.
    """
    try:
        return identity_of(kind, wire.read(_OBJECT, raw).metadata)
    except msgspec.DecodeError as error:
        raise UnreadableError(f"{kind}: {problem_of(error)}") from error


def normalise(kind: str, raw: bytes | msgspec.Raw) -> Normalised:
    """
    One object as the API server writes it, in a list or in a watch.

    Raises:
        UnreadableError: it does not say which object it is.
    """
    try:
        obj = wire.read(_DECODERS[kind], raw)
    except msgspec.DecodeError as error:
        return Normalised(identify(kind, raw), None, problems=(problem_of(error),))
    identity = identity_of(kind, obj.metadata)
    reader = Reader()
    namespace_, _slash, name = identity.key.rpartition("/")
    fact = _BUILDERS[kind][1](reader, namespace_, name, obj)
    trigger = None
    if kind == "endpointslice":
        value = item(obj.metadata.annotations, TRIGGER_ANNOTATION)
        trigger = reader.time_ms(f"metadata.annotations[{TRIGGER_ANNOTATION}]", value)
    return Normalised(
        identity, fact, trigger, tuple(reader.problems), unsupported_fields(kind, obj)
    )


def explain(kind: str, key: str, problem: Problem) -> str:
    """`service default/x: spec.ports[0].protocol: unknown protocol "FOO"`."""
    return f"{describe(kind, key)}: {problem}"
