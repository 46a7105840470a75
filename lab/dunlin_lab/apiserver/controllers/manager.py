"""All controllers, started and stopped together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.controllers.deployment import DeploymentController
from dunlin_lab.apiserver.controllers.endpoints import EndpointsController
from dunlin_lab.apiserver.controllers.endpointslice import EndpointSliceController
from dunlin_lab.apiserver.controllers.garbage import GarbageCollector
from dunlin_lab.apiserver.controllers.index import ControlledIndex, LabelIndex, ServiceIndex
from dunlin_lab.apiserver.controllers.namespace import NamespaceController
from dunlin_lab.apiserver.controllers.node import NodeController
from dunlin_lab.apiserver.controllers.replicaset import ReplicaSetController
from dunlin_lab.apiserver.controllers.scheduler import Scheduler
from dunlin_lab.apiserver.resources import PODS

if TYPE_CHECKING:
    from collections.abc import Callable

    from dunlin_lab.apiserver.config import Settings
    from dunlin_lab.apiserver.controllers.base import Controller
    from dunlin_lab.apiserver.registry import Registry


def controllers_of(registry: Registry, settings: Settings) -> list[Controller]:
    """Return the controllers that are switched on."""
    labels = LabelIndex(registry.store, PODS)
    services = ServiceIndex(registry.store)
    lengths = {4: settings.node_cidr_mask_v4, 6: settings.node_cidr_mask_v6}
    makers: dict[str, Callable[[], Controller]] = {
        "endpointslice": lambda: EndpointSliceController(registry, labels, services),
        "endpoints": lambda: EndpointsController(registry, labels, services),
        "deployment": lambda: DeploymentController(registry),
        "replicaset": lambda: ReplicaSetController(registry, ControlledIndex(registry.store, PODS)),
        "namespace": lambda: NamespaceController(registry),
        "garbage": lambda: GarbageCollector(registry),
        "node": lambda: NodeController(registry, settings.cluster_cidrs, lengths),
        "scheduler": lambda: Scheduler(registry, settings.default_max_pods),
    }
    return [make() for name, make in makers.items() if name not in settings.disabled]


async def run_controllers(controllers: list[Controller]) -> None:
    """Run until cancelled, or until one of them breaks."""
    async with asyncio.TaskGroup() as group:
        for controller in controllers:
            group.create_task(controller.run(), name=controller.name)
