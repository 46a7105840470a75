"""
Request bodies in application/vnd.kubernetes.protobuf, as `kubectl create NAME` sends them.

Answers are always JSON, which every client takes. Only the messages and the fields that kubectl
fills are known; a body with anything in another field is refused with 415, not stored without it.
Source of the field numbers: the Kubernetes API's generated.proto, which is its wire format.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, TypeAlias

from dunlin_lab.apiserver.errors import ApiError, bad_request
from dunlin_lab.apiserver.values import Obj, timestamp

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"

# How a field is read. Lower case drops the zero value, as omitempty does; upper case keeps it (it
# is a pointer in Go). "[x" is a list of x, "{x" a map from string to x; another word is a message.
_Field: TypeAlias = tuple[str, str]
_Message: TypeAlias = dict[int, _Field]

_MESSAGES: dict[str, _Message] = {
    "Unknown": {1: ("typeMeta", "TypeMeta"), 2: ("raw", "raw"),
                3: ("contentEncoding", "s"), 4: ("contentType", "s")},
    "TypeMeta": {1: ("apiVersion", "s"), 2: ("kind", "s")},
    "Meta": {
        1: ("name", "s"), 2: ("generateName", "s"), 3: ("namespace", "s"), 4: ("selfLink", "s"),
        5: ("uid", "s"), 6: ("resourceVersion", "s"), 7: ("generation", "i"),
        8: ("creationTimestamp", "time"), 9: ("deletionTimestamp", "time"),
        10: ("deletionGracePeriodSeconds", "I"), 11: ("labels", "{s"),
        12: ("annotations", "{s"), 13: ("ownerReferences", "[Owner"), 14: ("finalizers", "[s"),
    },
    "Owner": {1: ("kind", "s"), 3: ("name", "s"), 4: ("uid", "s"), 5: ("apiVersion", "s"),
              6: ("controller", "B"), 7: ("blockOwnerDeletion", "B")},
    "Namespace": {1: ("metadata", "Meta"), 2: ("spec", "NamespaceSpec"),
                  3: ("status", "NamespaceStatus")},
    "NamespaceSpec": {1: ("finalizers", "[s")},
    "NamespaceStatus": {1: ("phase", "s")},
    "ConfigMap": {1: ("metadata", "Meta"), 2: ("data", "{s"), 3: ("binaryData", "{y"),
                  4: ("immutable", "B")},
    "Secret": {1: ("metadata", "Meta"), 2: ("data", "{y"), 3: ("type", "s"),
               4: ("stringData", "{s"), 5: ("immutable", "B")},
    "ServiceAccount": {1: ("metadata", "Meta"), 2: ("secrets", "[Reference"),
                       3: ("imagePullSecrets", "[Named"),
                       4: ("automountServiceAccountToken", "B")},
    "Reference": {1: ("kind", "s"), 2: ("namespace", "s"), 3: ("name", "s"), 4: ("uid", "s"),
                  5: ("apiVersion", "s"), 6: ("resourceVersion", "s"), 7: ("fieldPath", "s")},
    "Named": {1: ("name", "s")},
    "Service": {1: ("metadata", "Meta"), 2: ("spec", "ServiceSpec"),
                3: ("status", "ServiceStatus")},
    "ServiceSpec": {
        1: ("ports", "[ServicePort"), 2: ("selector", "{s"), 3: ("clusterIP", "s"),
        4: ("type", "s"), 5: ("externalIPs", "[s"), 7: ("sessionAffinity", "s"),
        8: ("loadBalancerIP", "s"), 9: ("loadBalancerSourceRanges", "[s"),
        10: ("externalName", "s"), 11: ("externalTrafficPolicy", "s"),
        12: ("healthCheckNodePort", "i"), 13: ("publishNotReadyAddresses", "b"),
        17: ("ipFamilyPolicy", "S"), 18: ("clusterIPs", "[s"), 19: ("ipFamilies", "[s"),
        20: ("allocateLoadBalancerNodePorts", "B"), 21: ("loadBalancerClass", "S"),
        22: ("internalTrafficPolicy", "S"), 23: ("trafficDistribution", "S"),
    },
    "ServicePort": {1: ("name", "s"), 2: ("protocol", "s"), 3: ("port", "i"),
                    4: ("targetPort", "IntOrString"), 5: ("nodePort", "i"),
                    6: ("appProtocol", "S")},
    "ServiceStatus": {1: ("loadBalancer", "Empty")},
    "Empty": {},
    "Deployment": {1: ("metadata", "Meta"), 2: ("spec", "DeploymentSpec"),
                   3: ("status", "DeploymentStatus")},
    "DeploymentSpec": {
        1: ("replicas", "I"), 2: ("selector", "Selector"), 3: ("template", "Template"),
        4: ("strategy", "Strategy"), 5: ("minReadySeconds", "i"),
        6: ("revisionHistoryLimit", "I"), 7: ("paused", "b"),
        9: ("progressDeadlineSeconds", "I"),
    },
    "DeploymentStatus": {
        1: ("observedGeneration", "i"), 2: ("replicas", "i"), 3: ("updatedReplicas", "i"),
        4: ("availableReplicas", "i"), 5: ("unavailableReplicas", "i"), 7: ("readyReplicas", "i"),
    },
    "Selector": {1: ("matchLabels", "{s"), 2: ("matchExpressions", "[Term")},
    "Term": {1: ("key", "s"), 2: ("operator", "s"), 3: ("values", "[s")},
    "Strategy": {1: ("type", "s"), 2: ("rollingUpdate", "Rolling")},
    "Rolling": {1: ("maxUnavailable", "IntOrString"), 2: ("maxSurge", "IntOrString")},
    "Template": {1: ("metadata", "Meta"), 2: ("spec", "PodSpec")},
    "PodSpec": {
        2: ("containers", "[Container"), 3: ("restartPolicy", "s"),
        4: ("terminationGracePeriodSeconds", "I"), 5: ("activeDeadlineSeconds", "I"),
        6: ("dnsPolicy", "s"), 7: ("nodeSelector", "{s"), 8: ("serviceAccountName", "s"),
        9: ("serviceAccount", "s"), 10: ("nodeName", "s"), 11: ("hostNetwork", "b"),
        12: ("hostPID", "b"), 13: ("hostIPC", "b"), 14: ("securityContext", "Empty"),
        16: ("hostname", "s"), 17: ("subdomain", "s"), 19: ("schedulerName", "s"),
        20: ("initContainers", "[Container"),
    },
    "Container": {
        1: ("name", "s"), 2: ("image", "s"), 3: ("command", "[s"), 4: ("args", "[s"),
        5: ("workingDir", "s"), 6: ("ports", "[ContainerPort"), 7: ("env", "[Env"),
        8: ("resources", "Empty"), 13: ("terminationMessagePath", "s"),
        14: ("imagePullPolicy", "s"), 16: ("stdin", "b"), 17: ("stdinOnce", "b"),
        18: ("tty", "b"), 20: ("terminationMessagePolicy", "s"),
    },
    "ContainerPort": {1: ("name", "s"), 2: ("hostPort", "i"), 3: ("containerPort", "i"),
                      4: ("protocol", "s"), 5: ("hostIP", "s")},
    "Env": {1: ("name", "s"), 2: ("value", "s")},
    "Eviction": {1: ("metadata", "Meta"), 2: ("deleteOptions", "DeleteOptions")},
    "DeleteOptions": {
        1: ("gracePeriodSeconds", "I"), 2: ("preconditions", "Preconditions"),
        3: ("orphanDependents", "B"), 4: ("propagationPolicy", "S"), 5: ("dryRun", "[s"),
    },
    "Preconditions": {1: ("uid", "S"), 2: ("resourceVersion", "S")},
    "Binding": {1: ("metadata", "Meta"), 2: ("target", "Reference")},
}  # fmt: skip

_VARINT, _BYTES = 0, 2
_HIGH_BIT = 0x80
_VARINT_BITS_MAX = 70


class _UnknownError(Exception):
    """A message or a field this table does not have."""


def decode_protobuf(body: bytes) -> Obj:
    """
    Decode a request body to the object its JSON would be.

    Raises:
        ApiError: 400 for bytes that do not parse, 415 for a kind or a field that is not known.
    """
    if not body.startswith(_MAGIC):
        message = "the body is not in the Kubernetes protobuf form"
        raise bad_request(message)
    try:
        outer = _message("Unknown", body[len(_MAGIC) :])
        kind = outer.get("typeMeta", {})
        return {**kind, **_message(kind.get("kind", ""), outer.get("raw", b""))}
    except _UnknownError as error:
        text = f"{MEDIA_TYPE}: {error} is not known to the lab's API server; send JSON"
        raise ApiError(415, "UnsupportedMediaType", text, {}) from error
    except (IndexError, UnicodeDecodeError) as error:
        text = f"the body does not parse as {MEDIA_TYPE}: {error}"
        raise bad_request(text) from error


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & ~_HIGH_BIT) << shift
        at += 1
        if byte < _HIGH_BIT:
            return value, at
        shift += 7
        if shift > _VARINT_BITS_MAX:
            message = "a number of more than 64 bits"
            raise IndexError(message)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of each field of a message."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, at = _varint(data, at)
            yield number, value
        elif wire == _BYTES:
            length, at = _varint(data, at)
            if at + length > len(data):
                message = "a field is longer than its message"
                raise IndexError(message)
            yield number, data[at : at + length]
            at += length
        else:
            unknown = f"wire type {wire}"
            raise _UnknownError(unknown)


def _message(name: str, data: bytes) -> Obj:
    known, found = _MESSAGES.get(name), Obj()
    if known is None:
        unknown = f"kind {name!r}"
        raise _UnknownError(unknown)
    for number, raw in _fields(data):
        if number not in known:
            if not raw:
                continue  # Go writes plain fields even when they are empty
            unknown = f"field {number} of {name}"
            raise _UnknownError(unknown)
        label, kind = known[number]
        if kind.startswith("["):
            found.setdefault(label, []).append(_value(kind[1:], raw))
        elif kind.startswith("{"):
            entry = dict(_fields(_bytes(raw)))
            key = _bytes(entry.get(1, b"")).decode()
            found.setdefault(label, {})[key] = _value(kind[1:], entry.get(2, b""))
        else:
            value = _value(kind, raw)
            if kind[0].isupper() or value not in ("", 0, False):
                found[label] = value
    return found


def _bytes(raw: int | bytes) -> bytes:
    if isinstance(raw, int):
        message = "a number where bytes are expected"
        raise IndexError(message)
    return raw


def _value(kind: str, raw: int | bytes) -> Any:
    match kind:
        case "s" | "S":
            return _bytes(raw).decode()
        case "y":
            return base64.b64encode(_bytes(raw)).decode()
        case "raw":
            return _bytes(raw)
        case "i" | "I" | "b" | "B" if isinstance(raw, int):
            if kind in ("b", "B"):
                return bool(raw)
            return raw - (1 << 64) if raw >= 1 << 63 else raw
        case "time":
            seconds = dict(_fields(_bytes(raw))).get(1)
            return timestamp(seconds) if isinstance(seconds, int) else ""
        case "IntOrString":
            parts = dict(_fields(_bytes(raw)))
            return _bytes(parts.get(3, b"")).decode() if parts.get(1) else parts.get(2, 0)
        case "i" | "I" | "b" | "B":
            message = "bytes where a number is expected"
            raise IndexError(message)
        case _:
            return _message(kind, _bytes(raw))
