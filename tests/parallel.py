"""
Two workers side by side (`pytest -n 2`, pytest-xdist): each has its own half, in its own order.

End-to-end tests mostly wait, the rest mostly computes: together they take half of the time. What
runs on which worker, and in what order, depends on the seed alone, never on who was faster.
"""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling

SHARED = "tests/e2e/test_"
OWN_LABS = (
    *("chaos", "compose", "compose_official", "encapsulation", "failover", "kubeconfig"),
    *("kubelet", "lab_leaves_nothing", "nats_servers", "probes", "real_cluster", "upgrade"),
)
"""Modules of tests/e2e that do not use the lab of all the others."""


def half(nodeid: str) -> str:
    """`lab`: the tests of the one lab that most end-to-end tests share; `others`."""
    module = nodeid.split("::", maxsplit=1)[0].removesuffix(".py")
    own = module.removeprefix(SHARED) in OWN_LABS
    return "lab" if module.startswith(SHARED) and not own else "others"


class TwoHalves(LoadScopeScheduling):
    """A half is one piece of work: a worker has it whole."""

    def _split_scope(self, nodeid: str) -> str:
        return half(nodeid)
