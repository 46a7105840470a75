"""Three clustered nats-servers, each stream three times: one of them is lost, whichever it is."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.e2e.lab_cluster import eventually, why_not
from tests.e2e.test_failover import Replicated, unharmed

pytestmark = [
    pytest.mark.soak,
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]
COUNTS = {"nats": 3, "planner": 2, "flowctl": 2, "ipam": 2, "watcher": 2}


@pytest.fixture(scope="module")
def lab() -> Iterator[Replicated]:
    """The lab `ns-<pid>`, taken down at the end."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    made = Replicated(f"ns-{os.getpid()}")
    try:
        made.up("--nodes", "2", *(f"--replicas={name}={count}" for name, count in COUNTS.items()))
        made.populate("failover")
        yield made
    finally:
        made.down()


def nobody_died(lab: Replicated, but: str) -> None:
    """Every process runs."""
    for item in lab.status()["services"]:
        name = f"{item['service']}/{item['replica']}"
        assert item["up"] or name == but, f"{name} ended by itself:\n{lab.log_tail(name)}"


@pytest.mark.parametrize("server", range(COUNTS["nats"]))
def test_one_of_three_is_lost(lab: Replicated, server: int) -> None:
    """A kill -9 of one: no packet is lost, owners stay, changes go on meanwhile."""
    owners = lab.served()
    with unharmed(lab):
        lab.kill(f"nats/{server}")
        address = lab.service_made(f"without-{server}")
        eventually("a new Service works without it", lambda: lab.answers(address))
        nobody_died(lab, f"nats/{server}")
        lab.start(f"nats/{server}")
        lab.ready()
        lab.service_gone(f"without-{server}")
        lab.wait(60)
    assert set(lab.served()) == set(owners)
    nobody_died(lab, "")


def test_two_of_three_are_lost(lab: Replicated) -> None:
    """Without a majority nothing changes and nothing breaks; with it what was asked for comes."""
    with unharmed(lab):
        for server in (0, 1):
            lab.kill(f"nats/{server}")
        address = lab.service_made("without-majority")
        before = lab.all_flows()
        # Longer than a lease lasts: nobody may take that for the death of the others.
        with pytest.raises(AssertionError, match="not within"):
            eventually("nothing", lambda: lab.all_flows() != before, 5.0)
        lab.start("nats/0")
        eventually("the Service works with two", lambda: lab.answers(address))
        lab.start("nats/1")
        lab.ready()
        lab.service_gone("without-majority")
        lab.wait(60)
    nobody_died(lab, "")
