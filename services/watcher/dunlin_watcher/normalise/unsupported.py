"""
What these objects may ask for and Dunlin, as a whole, does not do: the one table of it.

Each object that asks is counted once in dunlin_unsupported_total{kind,field} and shown by
GET /v1/status. A feature that becomes supported is taken out here.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from dunlin_watcher import kube
from dunlin_watcher.normalise.pod import listening


class Rule(NamedTuple):
    """`asks(object)`: it does; `field` as Kubernetes spells it, without indices."""

    kind: str
    field: str
    asks: Callable[[Any], bool]


def _any_port(asks: Callable[[kube.ContainerPort], bool]) -> Callable[[kube.Pod], bool]:
    def test(obj: kube.Pod) -> bool:
        # Not on host network: its ports are the node's.
        if obj.spec is None or obj.spec.host_network:
            return False
        ports = (port for _at, container in listening(obj.spec) for port in container.ports or ())
        return any(map(asks, ports))

    return test


RULES: tuple[Rule, ...] = (
    Rule(
        "pod", "spec.containers[].ports[].protocol=SCTP", _any_port(lambda p: p.protocol == "SCTP")
    ),
    Rule("endpointslice", "addressType=FQDN", lambda o: o.address_type == "FQDN"),
    Rule("endpointslice", "ports[].port", lambda o: any(p.port is None for p in o.ports or ())),
    Rule(
        "endpointslice",
        "endpoints[].addresses",
        lambda o: any(len(e.addresses or ()) > 1 for e in o.endpoints or ()),
    ),
)

_BY_KIND: dict[str, tuple[Rule, ...]] = {
    kind: tuple(rule for rule in RULES if rule.kind == kind)
    for kind in {rule.kind for rule in RULES}
}


def unsupported_fields(kind: str, obj: Any) -> tuple[str, ...]:
    """The fields by which this (decoded) object asks for what Dunlin does not do."""
    return tuple(rule.field for rule in _BY_KIND.get(kind, ()) if rule.asks(obj))
