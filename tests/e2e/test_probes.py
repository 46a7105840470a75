"""The probes of the fault tests can fail: they see what is lost."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from dunlin_lab import links, netns
from tests.e2e.lab_cluster import eventually, why_not
from tests.e2e.traffic import HttpProbe, UdpProbe, ping_here

pytestmark = [pytest.mark.root]


@pytest.fixture
def lonely() -> Iterator[str]:
    """A namespace in which nobody answers."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    name = f"dunlin-probe-{os.getpid()}"
    path = netns.create(name)

    def up() -> None:
        with links.route() as ipr:
            links.up(ipr, "lo")

    netns.run_in(path, up)
    yield str(path)
    netns.delete(name)


def test_a_silent_target_counts_as_lost(lonely: str) -> None:
    """Every datagram without an answer is lost."""
    probe = UdpProbe(lonely, "127.0.0.1", 9)
    eventually("it sends", lambda: probe.counts.sent > 5)
    counts = probe.stop()
    assert counts.lost == counts.sent
    assert counts.errors


def test_a_refused_connection_counts_as_lost(lonely: str) -> None:
    """Every failed request is lost, and named."""
    probe = HttpProbe(lonely, "127.0.0.1", port=9)
    eventually("it calls", lambda: probe.counts.sent > 2)
    counts = probe.stop()
    assert counts.lost == counts.sent
    assert counts.errors


def test_ping_of_nobody_is_lost(lonely: str) -> None:
    """No reply is a loss."""
    assert netns.run_in(lonely, lambda: ping_here("192.0.2.1", count=2)) == 2
