"""One real OVS for each test."""

from collections.abc import Iterator

import pytest

from tests.dataplane.flowctl.ovs import AVAILABLE, Ovs
from tests.unit.flowctl.harness import Cluster


@pytest.fixture
def ovs() -> Iterator[Ovs]:
    """A running ovs-vswitchd."""
    if not AVAILABLE:
        pytest.skip("needs ovs-vswitchd and its schema (openvswitch-switch)")
    ovs = Ovs()
    try:
        yield ovs.start()
    finally:
        ovs.stop()


@pytest.fixture
async def cluster() -> Cluster:
    """An empty bus."""
    return await Cluster().start()
