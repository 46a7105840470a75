"""When facts are intents, and when what is not an intent does not exist."""

from typing import Any

import pytest

from dunlin.events.state import Progress
from dunlin.watermarks import Epochs, Watermarks

NOW = Epochs("facts-2", "intents-2")


def claim(service: str, replica: str, **fields: Any) -> Progress:
    """A claim in the current epochs."""
    values: dict[str, Any] = {
        "fact_epoch": NOW.facts,
        "intent_epoch": NOW.intents,
        "fact_seq": 10,
        "intent_seq": 100,
        "complete": True,
        **fields,
    }
    return Progress(service=service, replica=replica, **values)  # type: ignore[arg-type]


def marks(*claims: Progress) -> Watermarks:
    """Watermarks after these claims."""
    result = Watermarks()
    for item in claims:
        result.claim(item)
    return result


def both(**fields: Any) -> list[Progress]:
    """Ipam and planner claim the same."""
    return [claim("ipam", "i", **fields), claim("planner", "p", **fields)]


def test_both_services_complete() -> None:
    """Both complete: the larger of their intent sequences must have been read."""
    found = marks(claim("ipam", "i", intent_seq=7), claim("planner", "p", intent_seq=9))
    assert found.complete(NOW) == 9


@pytest.mark.parametrize(
    "claims",
    [
        [],
        [claim("ipam", "i")],
        [claim("planner", "p")],
        both(complete=False),
        [claim("ipam", "i"), claim("planner", "p", complete=False)],
        both(fact_epoch="facts-1"),
        both(intent_epoch="intents-1"),
        [claim("ipam", "i"), claim("planner", "p", shards=(0,), shard_count=2)],
        [
            claim("ipam", "i"),
            claim("planner", "p", shards=(0,), shard_count=2),
            claim("planner", "q", shards=(1,), shard_count=2, complete=False),
        ],
        [
            claim("ipam", "i"),
            claim("planner", "p", shards=(0,), shard_count=2),
            claim("planner", "q", shards=(1, 2), shard_count=3),
        ],
        [claim("ipam", "i"), claim("planner", "p", shards=(), shard_count=0)],
    ],
)
def test_not_complete(claims: list[Progress]) -> None:
    """A service, a shard, an epoch or a word that is missing: not complete."""
    assert marks(*claims).complete(NOW) is None


def test_every_shard_by_whoever() -> None:
    """Shards may be claimed by several replicas, also twice; the least is enough."""
    found = marks(
        claim("ipam", "i"),
        claim("planner", "p", shards=(0, 1), shard_count=3, intent_seq=200),
        claim("planner", "q", shards=(1, 2), shard_count=3, intent_seq=150),
        claim("planner", "old", shards=(0,), shard_count=1, intent_seq=900, complete=False),
    )
    assert found.complete(NOW) == 200


def test_covering_waits_for_every_shard() -> None:
    """A fact is covered once a claim for each shard has read as far."""
    found = marks(
        claim("planner", "p", shards=(0,), shard_count=2, fact_seq=50, intent_seq=5),
        claim("planner", "q", shards=(1,), shard_count=2, fact_seq=40, intent_seq=8),
    )
    assert found.covering("planner", NOW, 40) == 8
    assert found.covering("planner", NOW, 41) is None
    assert found.covering("ipam", NOW, 1) is None
    assert found.behind(NOW, 41) == [
        "ipam has read facts up to 0, not 41",
        "planner has read facts up to 50, not 41",
    ]


def test_a_claim_of_the_past_counts_for_nothing() -> None:
    """Sequences of another epoch do not compare."""
    found = marks(*both(fact_epoch="facts-1", fact_seq=10**6))
    assert found.covering("ipam", NOW, 1) is None


def test_the_newest_claim_of_a_replica_counts() -> None:
    """A replica that starts over in a new epoch replaces its claim; a retracted one is gone."""
    found = marks(*both(), *both(fact_seq=20))
    assert found.covering("ipam", NOW, 20) == 100
    found.retract("ipam", "i")
    assert found.complete(NOW) is None
    found = marks(*both())
    found.forget()
    assert found.complete(NOW) is None
