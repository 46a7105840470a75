"""Every server under contract in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.fixtures.kube_api import STARTERS, Server

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx


@pytest.fixture(scope="module", params=list(STARTERS))
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A fresh server of each sort."""
    directory = tmp_path_factory.mktemp(request.param)
    with STARTERS[request.param](directory) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the server."""
    with server.client() as found:
        yield found
