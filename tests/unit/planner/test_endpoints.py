"""kube-proxy's CategorizeEndpoints."""

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
    assert sets.cluster == sets.all_reachable == (pool[0],)
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
    assert sets.all_reachable == (ready, leaving)


def test_local_only() -> None:
    """Under two Local policies the cluster-wide set is nobody's concern."""
    sets = categorize((candidate(1, "a"), candidate(2, "")), uses_cluster=False, uses_local=True)
    assert sets.cluster == ()
    assert sets.all_reachable == (candidate(1, "a"),)
