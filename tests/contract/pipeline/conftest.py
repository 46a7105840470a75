"""A switch of its own for each test."""

from collections.abc import Iterator

import pytest

from tests.fixtures.ovs_dummy import OvsBridge, OvsDummy


@pytest.fixture
def bridge(ovs_dummy: OvsDummy) -> Iterator[OvsBridge]:
    """A fresh bridge without ports."""
    with ovs_dummy.bridge() as bridge:
        yield bridge
