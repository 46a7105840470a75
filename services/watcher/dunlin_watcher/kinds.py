"""The kinds of objects that the watcher lists and watches, and where the API server has them."""

from dataclasses import dataclass

from dunlin.events import facts


@dataclass(frozen=True, slots=True)
class Kind:
    """
    One kind: `name` as in fact subjects, `path` of its collection over all namespaces.

    `optional`: a server that answers 404 simply has none (older releases); for the others that is
    an error.
    """

    name: str
    path: str
    fact: type[facts.Fact]
    namespaced: bool = True
    optional: bool = False


_CORE = "/api/v1"
_NETWORKING = "/apis/networking.k8s.io/v1"

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("node", f"{_CORE}/nodes", facts.NodeFact, namespaced=False),
        Kind("namespace", f"{_CORE}/namespaces", facts.NamespaceFact, namespaced=False),
        Kind(
            "servicecidr",
            f"{_NETWORKING}/servicecidrs",
            facts.ServiceCIDRFact,
            namespaced=False,
            optional=True,
        ),
        Kind("service", f"{_CORE}/services", facts.ServiceFact),
        Kind(
            "endpointslice",
            "/apis/discovery.k8s.io/v1/endpointslices",
            facts.EndpointSliceFact,
        ),
        Kind("networkpolicy", f"{_NETWORKING}/networkpolicies", facts.NetworkPolicyFact),
        Kind(
            "clusternetworkpolicy",
            "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies",
            facts.ClusterNetworkPolicyFact,
            namespaced=False,
            optional=True,
        ),
        Kind("pod", f"{_CORE}/pods", facts.PodFact),
    )
}
"""By name; in the order in which they are worth having."""


def key_of(namespace: str, name: str) -> str:
    """An object within its kind: `<namespace>/<name>`, or `<name>` where it has no namespace."""
    return f"{namespace}/{name}" if namespace else name


def split_key(key: str) -> tuple[str, str]:
    """Inverse of `key_of`: (namespace, name)."""
    namespace, slash, name = key.partition("/")
    return (namespace, name) if slash else ("", namespace)


def describe(kind: str, key: str) -> str:
    """The object for people and errors: `service default/web`, `node n1`."""
    return f"{kind} {key}"
