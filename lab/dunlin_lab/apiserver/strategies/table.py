"""Which strategy a kind has."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dunlin_lab.apiserver.strategies.base import Plain
from dunlin_lab.apiserver.strategies.cluster import (
    NamespaceStrategy,
    NodeStrategy,
    SecretStrategy,
    StatusStrategy,
)
from dunlin_lab.apiserver.strategies.network import (
    EndpointSliceStrategy,
    EndpointsStrategy,
    NetworkPolicyStrategy,
)
from dunlin_lab.apiserver.strategies.pod import PodStrategy
from dunlin_lab.apiserver.strategies.service import ServiceStrategy
from dunlin_lab.apiserver.strategies.workload import (
    DaemonSetStrategy,
    DeploymentStrategy,
    StatefulSetStrategy,
    WorkloadStrategy,
)

if TYPE_CHECKING:
    from dunlin_lab.apiserver.resources import Resource
    from dunlin_lab.apiserver.strategies.base import Strategy

_PLAIN = Plain()
_STATUS = StatusStrategy()
_BY_KIND: dict[str, Strategy] = {
    "DaemonSet": DaemonSetStrategy(
        dict.fromkeys(
            ("currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled",
             "numberReady"), 0,
        )
    ),
    "Deployment": DeploymentStrategy({}),
    "EndpointSlice": EndpointSliceStrategy(),
    "Endpoints": EndpointsStrategy(),
    "Namespace": NamespaceStrategy(),
    "NetworkPolicy": NetworkPolicyStrategy(),
    "Node": NodeStrategy(),
    "Pod": PodStrategy(),
    "ReplicaSet": WorkloadStrategy({"replicas": 0}),
    "Secret": SecretStrategy(),
    "Service": ServiceStrategy(),
    "StatefulSet": StatefulSetStrategy({"replicas": 0, "availableReplicas": 0}),
}  # fmt: skip


def strategy_of(resource: Resource) -> Strategy:
    """Return the strategy of a kind; one without defaults needs no entry."""
    found = _BY_KIND.get(resource.kind)
    if found is not None:
        return found
    return _STATUS if resource.subresource("status") else _PLAIN
