"""One lab of three nodes for all end-to-end tests; each test has a namespace of its own in it."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.lab_cluster import LabCluster, a_lab


@pytest.fixture(scope="session")
def cluster() -> Iterator[LabCluster]:
    """The lab `e2e-<pid>`, taken down at the end; or the one that DUNLIN_E2E_LAB names."""
    standing = os.environ.get("DUNLIN_E2E_LAB")
    if standing:
        yield LabCluster(standing).attach()
        return
    with a_lab("e2e", "--nodes", "3") as lab:
        yield lab
