"""The kinds this server keeps: one table row each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from dunlin_lab.apiserver.values import Obj

VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")
GET_PATCH_UPDATE = ("get", "patch", "update")


@dataclass(frozen=True, slots=True)
class Subresource:
    """A subresource; `kind` empty means the kind of its resource."""

    name: str
    kind: str = ""
    group: str = ""
    version: str = ""
    verbs: tuple[str, ...] = GET_PATCH_UPDATE


STATUS = Subresource("status")
SCALE = Subresource("scale", "Scale", "autoscaling", "v1")
BINDING = Subresource("binding", "Binding", verbs=("create",))
EVICTION = Subresource("eviction", "Eviction", "policy", "v1", ("create",))
FINALIZE = Subresource("finalize", verbs=("update",))


@dataclass(frozen=True, slots=True)
class Resource:
    """
    One kind.

    `generation` says what makes metadata.generation rise: never, a change of spec, or any change
    outside metadata (EndpointSlice has no spec). `fields` are the field selectors beyond
    metadata.name and metadata.namespace. `empty` is what a BOOKMARK's object shows of the kind.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    subresources: tuple[Subresource, ...] = ()
    verbs: tuple[str, ...] = VERBS
    generation: Literal["none", "spec", "object"] = "none"
    returns_deleted: bool = False
    create_on_update: bool = False
    fields: tuple[str, ...] = ()
    empty: Obj = field(default_factory=dict, hash=False, compare=False)

    @property
    def singular(self) -> str:
        """The singular name, which discovery shows."""
        return self.kind.lower()

    @property
    def api_version(self) -> str:
        """`v1` or `group/version`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def qualified(self) -> str:
        """`pods` or `deployments.apps`, as messages show it."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def list_kind(self) -> str:
        """The kind of a list."""
        return f"{self.kind}List"

    @property
    def prefix(self) -> str:
        """The path under which objects or their namespaces stand."""
        root = f"/apis/{self.group}" if self.group else "/api"
        return f"{root}/{self.version}"

    def subresource(self, name: str) -> Subresource | None:
        """Return the subresource of this name, if the kind has it."""
        return next((sub for sub in self.subresources if sub.name == name), None)


_NODE_INFO = dict.fromkeys(
    (
        "machineID", "systemUUID", "bootID", "kernelVersion", "osImage",
        "containerRuntimeVersion", "kubeletVersion", "kubeProxyVersion",
        "operatingSystem", "architecture",
    ),
    "",
)  # fmt: skip
EMPTY_NODE_STATUS: Obj = {
    "daemonEndpoints": {"kubeletEndpoint": {"Port": 0}},
    "nodeInfo": _NODE_INFO,
}
_EVENT_FIELDS = (
    "involvedObject.kind", "involvedObject.namespace", "involvedObject.name",
    "involvedObject.uid", "involvedObject.apiVersion", "involvedObject.resourceVersion",
    "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type",
)  # fmt: skip
_POD_FIELDS = (
    "spec.nodeName", "spec.restartPolicy", "spec.schedulerName", "spec.serviceAccountName",
    "spec.hostNetwork", "status.phase", "status.podIP", "status.nominatedNodeName",
)  # fmt: skip
_WORKLOAD = (SCALE, STATUS)
_EMPTY_SLICE: Obj = {"addressType": "", "endpoints": None, "ports": None}
_APPS = ("apps", "v1")
_NET = ("networking.k8s.io", "v1")

CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap", short_names=("cm",))
ENDPOINTS = Resource("", "v1", "endpoints", "Endpoints", short_names=("ep",), create_on_update=True)
EVENTS = Resource(
    "", "v1", "events", "Event", short_names=("ev",), create_on_update=True, fields=_EVENT_FIELDS
)
NAMESPACES = Resource(
    "", "v1", "namespaces", "Namespace",
    namespaced=False, short_names=("ns",), subresources=(FINALIZE, STATUS),
    verbs=tuple(verb for verb in VERBS if verb != "deletecollection"), fields=("status.phase",),
    empty={"spec": {}, "status": {}},
)  # fmt: skip
NODES = Resource(
    "", "v1", "nodes", "Node",
    namespaced=False, short_names=("no",), subresources=(STATUS,), fields=("spec.unschedulable",),
    empty={"spec": {}, "status": EMPTY_NODE_STATUS},
)  # fmt: skip
PODS = Resource(
    "", "v1", "pods", "Pod",
    short_names=("po",), categories=("all",), subresources=(BINDING, EVICTION, STATUS),
    generation="spec", returns_deleted=True, fields=_POD_FIELDS,
    empty={"spec": {"containers": None}, "status": {}},
)  # fmt: skip
SECRETS = Resource("", "v1", "secrets", "Secret", fields=("type",))
SERVICEACCOUNTS = Resource(
    "", "v1", "serviceaccounts", "ServiceAccount", short_names=("sa",), returns_deleted=True
)
SERVICES = Resource(
    "", "v1", "services", "Service",
    short_names=("svc",), categories=("all",), subresources=(STATUS,), returns_deleted=True,
    fields=("spec.clusterIP", "spec.type"), empty={"spec": {}, "status": {"loadBalancer": {}}},
)  # fmt: skip
DEPLOYMENTS = Resource(
    *_APPS, "deployments", "Deployment",
    short_names=("deploy",), categories=("all",), subresources=_WORKLOAD, generation="spec",
)  # fmt: skip
REPLICASETS = Resource(
    *_APPS, "replicasets", "ReplicaSet",
    short_names=("rs",), categories=("all",), subresources=_WORKLOAD, generation="spec",
    fields=("status.replicas",),
)  # fmt: skip
ENDPOINTSLICES = Resource(
    "discovery.k8s.io", "v1", "endpointslices", "EndpointSlice",
    generation="object", create_on_update=True, empty=_EMPTY_SLICE,
)  # fmt: skip
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease", create_on_update=True)
NETWORKPOLICIES = Resource(
    *_NET, "networkpolicies", "NetworkPolicy", short_names=("netpol",), generation="spec"
)
SERVICECIDRS = Resource(
    *_NET, "servicecidrs", "ServiceCIDR", namespaced=False, subresources=(STATUS,)
)
IPADDRESSES = Resource(*_NET, "ipaddresses", "IPAddress", namespaced=False, short_names=("ip",))
CLUSTERNETWORKPOLICIES = Resource(
    "policy.networking.k8s.io", "v1alpha2", "clusternetworkpolicies", "ClusterNetworkPolicy",
    namespaced=False, short_names=("cnp",), subresources=(STATUS,), generation="spec",
)  # fmt: skip
# Stored and served so that manifests apply; no controller acts on them (docs/LIMITS.md).
STATEFULSETS = Resource(
    *_APPS, "statefulsets", "StatefulSet",
    short_names=("sts",), categories=("all",), subresources=_WORKLOAD, generation="spec",
)  # fmt: skip
DAEMONSETS = Resource(
    *_APPS, "daemonsets", "DaemonSet",
    short_names=("ds",), categories=("all",), subresources=(STATUS,), generation="spec",
)  # fmt: skip

RESOURCES: tuple[Resource, ...] = (
    CONFIGMAPS, ENDPOINTS, EVENTS, NAMESPACES, NODES, PODS, SECRETS, SERVICEACCOUNTS, SERVICES,
    DAEMONSETS, DEPLOYMENTS, REPLICASETS, STATEFULSETS, NETWORKPOLICIES, SERVICECIDRS,
    IPADDRESSES, LEASES, ENDPOINTSLICES, CLUSTERNETWORKPOLICIES,
)  # fmt: skip
BY_NAME = {(item.group, item.version, item.plural): item for item in RESOURCES}
BY_KIND = {(item.api_version, item.kind): item for item in RESOURCES}
BY_QUALIFIED = {item.qualified: item for item in RESOURCES}
