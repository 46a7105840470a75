"""
The types of the fields that this server reads, checked before anything else looks at an object.

A wrong type is a 400 even for objects injected with validation off: later code may rely on it.
Members not named here are kept as they are, unchecked.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import msgspec

from dunlin_lab.apiserver.errors import bad_request
from dunlin_lab.apiserver.values import Obj

_Labels = dict[str, str]
_IntOrString = int | str


class _Owner(TypedDict):
    apiVersion: str
    kind: str
    name: str
    uid: str
    controller: NotRequired[bool]
    blockOwnerDeletion: NotRequired[bool]


class _Meta(TypedDict, total=False):
    name: str
    generateName: str
    namespace: str
    uid: str
    resourceVersion: str
    generation: int
    creationTimestamp: str
    deletionTimestamp: str
    labels: _Labels
    annotations: _Labels
    finalizers: list[str]
    ownerReferences: list[_Owner]
    managedFields: list[dict[str, Any]]


class _ContainerPort(TypedDict, total=False):
    name: str
    containerPort: int
    hostPort: int
    protocol: str
    hostIP: str


class _Container(TypedDict, total=False):
    name: str
    image: str
    command: list[str]
    args: list[str]
    ports: list[_ContainerPort]
    env: list[dict[str, Any]]
    resources: dict[str, Any]
    imagePullPolicy: str


class _PodSpec(TypedDict, total=False):
    containers: list[_Container]
    initContainers: list[_Container]
    nodeName: str
    nodeSelector: _Labels
    hostNetwork: bool
    restartPolicy: str
    serviceAccountName: str
    schedulerName: str
    terminationGracePeriodSeconds: int
    tolerations: list[dict[str, Any]]
    readinessGates: list[dict[str, Any]]


class _PodIP(TypedDict, total=False):
    ip: str


class _Condition(TypedDict, total=False):
    type: str
    status: str
    reason: str
    message: str
    lastTransitionTime: str


class _PodStatus(TypedDict, total=False):
    phase: str
    podIP: str
    podIPs: list[_PodIP]
    conditions: list[_Condition]
    containerStatuses: list[dict[str, Any]]


class _Template(TypedDict, total=False):
    metadata: _Meta
    spec: _PodSpec


class _Term(TypedDict, total=False):
    key: str
    operator: str
    values: list[str]


class _Selector(TypedDict, total=False):
    matchLabels: _Labels
    matchExpressions: list[_Term]


class _Strategy(TypedDict, total=False):
    type: str
    rollingUpdate: dict[str, _IntOrString]


class _WorkloadSpec(TypedDict, total=False):
    replicas: int
    selector: _Selector
    template: _Template
    strategy: _Strategy
    minReadySeconds: int
    paused: bool
    revisionHistoryLimit: int
    progressDeadlineSeconds: int


class _ServicePort(TypedDict, total=False):
    name: str
    port: int
    targetPort: _IntOrString
    nodePort: int
    protocol: str
    appProtocol: str


class _ServiceSpec(TypedDict, total=False):
    type: str
    selector: _Labels
    ports: list[_ServicePort]
    clusterIP: str
    clusterIPs: list[str]
    ipFamilies: list[str]
    ipFamilyPolicy: str
    sessionAffinity: str
    sessionAffinityConfig: dict[str, Any]
    externalIPs: list[str]
    externalName: str
    externalTrafficPolicy: str
    internalTrafficPolicy: str
    publishNotReadyAddresses: bool
    allocateLoadBalancerNodePorts: bool
    healthCheckNodePort: int
    loadBalancerSourceRanges: list[str]


class _Taint(TypedDict, total=False):
    key: str
    value: str
    effect: str


class _NodeSpec(TypedDict, total=False):
    podCIDR: str
    podCIDRs: list[str]
    unschedulable: bool
    taints: list[_Taint]


class _NodeStatus(TypedDict, total=False):
    addresses: list[dict[str, str]]
    conditions: list[_Condition]
    allocatable: dict[str, Any]
    capacity: dict[str, Any]


class _Endpoint(TypedDict, total=False):
    addresses: list[str]
    conditions: dict[str, bool]
    nodeName: str
    zone: str
    targetRef: dict[str, Any]


class _PolicyPort(TypedDict, total=False):
    protocol: str
    port: _IntOrString
    endPort: int


_IPBlock = TypedDict("_IPBlock", {"cidr": str, "except": list[str]}, total=False)


class _Peer(TypedDict, total=False):
    podSelector: _Selector
    namespaceSelector: _Selector
    ipBlock: _IPBlock


_Ingress = TypedDict("_Ingress", {"from": list[_Peer], "ports": list[_PolicyPort]}, total=False)


class _Egress(TypedDict, total=False):
    to: list[_Peer]
    ports: list[_PolicyPort]


class _PolicySpec(TypedDict, total=False):
    podSelector: _Selector
    ingress: list[_Ingress]
    egress: list[_Egress]
    policyTypes: list[str]


class _Base(TypedDict, total=False):
    apiVersion: str
    kind: str
    metadata: _Meta


class _Pod(_Base, total=False):
    spec: _PodSpec
    status: _PodStatus


class _Workload(_Base, total=False):
    spec: _WorkloadSpec
    status: dict[str, Any]


class _Service(_Base, total=False):
    spec: _ServiceSpec
    status: dict[str, Any]


class _Node(_Base, total=False):
    spec: _NodeSpec
    status: _NodeStatus


class _Namespace(_Base, total=False):
    spec: dict[str, list[str]]
    status: dict[str, Any]


class _EndpointSlice(_Base, total=False):
    addressType: str
    endpoints: list[_Endpoint]
    ports: list[dict[str, Any]]


class _NetworkPolicy(_Base, total=False):
    spec: _PolicySpec


class _Data(_Base, total=False):
    data: _Labels
    binaryData: _Labels
    stringData: _Labels
    immutable: bool


_SHAPES: dict[str, Any] = {
    "Pod": _Pod,
    "Deployment": _Workload,
    "ReplicaSet": _Workload,
    "StatefulSet": _Workload,
    "DaemonSet": _Workload,
    "Service": _Service,
    "Node": _Node,
    "Namespace": _Namespace,
    "EndpointSlice": _EndpointSlice,
    "NetworkPolicy": _NetworkPolicy,
    "ConfigMap": _Data,
    "Secret": _Data,
}


def check_shape(kind: str, obj: Obj) -> None:
    """
    Refuse an object in which a field this server reads has a wrong type.

    Raises:
        ApiError: 400 naming the path.
    """
    try:
        msgspec.convert(obj, _SHAPES.get(kind, _Base))
    except msgspec.ValidationError as error:
        message = f'{kind} in version "v1" cannot be handled as a {kind}: {error}'
        raise bad_request(message) from error
