"""Fixtures of the watcher's scenarios."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from tests.scenario.watcher.cluster import FakeWorld, a_world


@pytest_asyncio.fixture
async def world(tmp_path: Path) -> AsyncIterator[FakeWorld]:
    """An API server and a bus; the test starts watchers."""
    async with a_world(tmp_path) as made:
        yield made
