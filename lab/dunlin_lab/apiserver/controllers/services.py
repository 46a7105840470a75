"""What controllers of a Service's endpoints have in common: when to look at a Service again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dunlin_lab.apiserver.controllers.base import Controller
from dunlin_lab.apiserver.resources import PODS, SERVICES

if TYPE_CHECKING:
    from dunlin_lab.apiserver.controllers.index import LabelIndex, ServiceIndex
    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.store import Change


class ServiceController(Controller):
    """Its keys are those of Services; a Pod that changes is a change of all that select it."""

    def __init__(self, registry: Registry, pods: LabelIndex, services: ServiceIndex) -> None:
        """Look at every Service once, and follow Services and Pods."""
        super().__init__(registry)
        self._pods = pods
        self._services = services
        self.watch(SERVICES, lambda change: self.enqueue(change.key))
        self.watch(PODS, self._on_pod)
        self._enqueue_all()

    def _on_pod(self, change: Change) -> None:
        for version in (change.old, change.new):
            if version is not None:
                for key in self._services.selecting(version):
                    self.enqueue(key)

    def _enqueue_all(self) -> None:
        for key in self.store.of(SERVICES).items:
            self.enqueue(key)
