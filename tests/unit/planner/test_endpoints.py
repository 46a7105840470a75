"""kube-proxy's CategorizeEndpoints."""

from dataclasses import replace
from ipaddress import ip_address

from dunlin_planner.core.endpoints import Candidate, categorize


def candidate(number: int, node: str, state: str = "ready") -> Candidate:
    """An endpoint on a node; `state`: ready, serving (and terminating) or gone."""
    return Candidate(
        ip=ip_address(f"10.0.0.{number}"),
        port=80,
        ready=state == "ready",
        serving=state != "gone",
        terminating=state != "ready",
        node=node,
    )


def test_cluster_only() -> None:
    """Without a local policy nothing is sorted by node."""
    pool = (candidate(1, "a"), candidate(2, "b", "serving"))
    sets = categorize(pool)
    assert sets.cluster == (pool[0],)
    assert sets.local == {}


def test_local_falls_back_per_node() -> None:
    """Node b has only a terminating endpoint and uses it, though another node has ready ones."""
    ready, leaving, gone = (
        candidate(1, "a"),
        candidate(2, "b", "serving"),
        candidate(3, "c", "gone"),
    )
    sets = categorize((ready, leaving, gone), uses_local=True)
    assert sets.cluster == (ready,)
    assert sets.local == {"a": (ready,), "b": (leaving,)}


def hinted(number: int, zones: tuple[str, ...] = (), nodes: tuple[str, ...] = ()) -> Candidate:
    """A ready endpoint with topology hints."""
    return replace(candidate(number, f"n{number}"), hint_zones=zones, hint_nodes=nodes)


def test_hints_count_only_if_every_ready_endpoint_has_one() -> None:
    """One without hints and they are ignored; one that is not ready does not matter."""
    one, two = hinted(1, ("za",)), hinted(2, ("za", "zb"))
    assert categorize((one, two)).zones == {"za": (one, two), "zb": (two,)}
    assert categorize((one, two, hinted(3))).zones == {}
    leaving = candidate(3, "n3", "serving")
    assert categorize((one, two, leaving)).zones == {"za": (one, two), "zb": (two,)}


def test_hints_of_nodes_and_zones_are_judged_apart() -> None:
    """Node hints of all endpoints make sets of nodes; missing ones leave the zones alone."""
    one, two = hinted(1, ("za",), ("n1",)), hinted(2, ("zb",), ("n2",))
    sets = categorize((one, two))
    assert sets.nodes == {"n1": (one,), "n2": (two,)}
    assert sets.zones == {"za": (one,), "zb": (two,)}
    sets = categorize((one, hinted(2, ("zb",))))
    assert sets.nodes == {}
    assert sets.zones == {"za": (one,), "zb": (hinted(2, ("zb",)),)}


def test_the_fall_back_to_terminating_endpoints_knows_no_topology() -> None:
    """Where none is ready, every one that serves is taken."""
    leaving = replace(candidate(1, "a", "serving"), hint_zones=("za",))
    sets = categorize((leaving, candidate(2, "b", "serving")))
    assert len(sets.cluster) == 2
    assert sets.zones == {}
