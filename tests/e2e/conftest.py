"""One lab of three nodes for all end-to-end tests; each test has a namespace of its own in it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.e2e.lab_cluster import LabCluster
from tests.fixtures.ovs_dummy import missing_ovs


def why_not() -> str:
    """Why there can be no lab here; "" if there can."""
    if os.geteuid() != 0:
        return "a lab needs root"
    return missing_ovs() or ("" if shutil.which("ip") else "no ip command")


@pytest.fixture(scope="session")
def cluster() -> Iterator[LabCluster]:
    """The lab `e2e-<pid>`, taken down at the end."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    lab = LabCluster(f"e2e-{os.getpid()}")
    try:
        lab.up("--nodes", "3")
        yield lab
    finally:
        lab.down()
