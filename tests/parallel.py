"""Two workers side by side: `pytest -n 2` (pytest-xdist), each with its own half of the tests."""

from __future__ import annotations

from xdist.scheduler import LoadScopeScheduling


class TwoHalves(LoadScopeScheduling):
    """The tests that share one lab on one worker, in order; all others on the other."""

    def _split_scope(self, nodeid: str) -> str:
        return "lab" if nodeid.startswith("tests/e2e/") else "others"
