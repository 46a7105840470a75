"""Even spread of select groups, by OVS's own rule for slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin.openflow.flow import Bucket, Group, Output
from dunlin.pipeline.layout import FLAT_BUCKETS_MAX
from dunlin.pipeline.spread import (
    ENDPOINTS_MAX,
    TooManyEndpoints,
    even_weights,
    slots,
    spread_group,
)


def ovs_slots(group: Group) -> dict[int, int]:
    """
    Slots of each bucket, by Webster's method as OVS 3.1 fills its dp_hash table.

    Source: ofproto/ofproto-dpif.c, group_setup_dp_hash_table(): at least 16 slots, the next power
    of two of total/minimum weight, at most 256; each slot goes to the bucket with the largest
    weight / (2 * slots it has + 1).
    """
    total = sum(bucket.weight for bucket in group.buckets)
    least = min(bucket.weight for bucket in group.buckets)
    wanted = max(16, -(-total // least))
    slots = 1 << (wanted - 1).bit_length()
    assert slots <= 256, "OVS would fall back to the slow path"
    has = dict.fromkeys(range(len(group.buckets)), 0)
    for _ in range(slots):
        best = max(has, key=lambda i: (group.buckets[i].weight / (2 * has[i] + 1), -i))
        has[best] += 1
    return has


def group_of(count: int) -> Group:
    """Outputs 1 … count."""
    return spread_group(0x100, [(Output(port),) for port in range(1, count + 1)])


def shares(group: Group, hits: dict[int, int]) -> dict[int, float]:
    """Output port -> its part of all hash values, by the hash slots of each bucket."""
    found: dict[int, float] = {}
    for bucket in group.buckets:
        (action,) = bucket.actions
        assert isinstance(action, Output)
        part = hits[bucket.bucket_id] / sum(hits.values())
        found[action.port] = found.get(action.port, 0.0) + part
    return found


def shares_of_slots(count: int) -> dict[int, float]:
    """Item -> its part of all values of dp_hash."""
    found = dict.fromkeys(range(count), 0.0)
    for (_, mask), item in slots(range(count)):
        found[item] += 2.0 ** -mask.bit_count()
    # The bits above the mask are not looked at by anybody.
    return {item: part / sum(found.values()) for item, part in found.items()}


@pytest.mark.parametrize("count", [1, 2, 3, 9, 10, 15, 16, 17, 27, 31, FLAT_BUCKETS_MAX])
def test_every_share_of_a_group_is_near_the_mean(count: int) -> None:
    """No endpoint gets more than 1.25 times or less than 0.75 times its fair share."""
    group = group_of(count)
    found = shares(group, ovs_slots(group))
    assert sorted(found) == list(range(1, count + 1))
    assert max(found.values()) <= 1.25 / count
    assert min(found.values()) >= 0.75 / count


@pytest.mark.parametrize("count", [33, 60, 64, 65, 100, 250, 255, 256, 1000, 5000, 16320])
def test_every_share_of_slots_is_near_the_mean(count: int) -> None:
    """Nobody is more than a sixteenth away from it, in few flows an endpoint."""
    found = shares_of_slots(count)
    assert max(found.values()) <= (1 + 1 / 16) / count
    assert min(found.values()) >= (1 - 1 / 16) / count
    assert len(slots(range(count))) <= 6 * count


@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_every_hash_is_somebodys_and_nobody_elses(count: int, dp_hash: int) -> None:
    """The slots are cut without gap or overlap."""
    owners = [item for (value, mask), item in slots(range(count)) if dp_hash & mask == value]
    assert len(owners) == 1


def test_the_model_shows_the_skew_of_equal_weights() -> None:
    """The oracle can fail: nine equal weights on 16 slots differ by 2:1."""
    group = Group(1, "select", tuple(Bucket(i, (Output(i + 1),)) for i in range(9)))
    found = shares(group, ovs_slots(group))
    assert max(found.values()) == 2 * min(found.values())


@given(st.integers(1, 255))
def test_weights_make_256_slots(count: int) -> None:
    """Weights sum to 256 and the smallest is 1, whatever the number of endpoints."""
    weights = even_weights(count)
    assert len(weights) == count + 1
    assert sum(weights) == 256
    assert weights[-1] == 1


def test_too_many_endpoints_are_refused_by_name() -> None:
    """The error says how many there are and may be."""
    with pytest.raises(TooManyEndpoints, match=str(ENDPOINTS_MAX)):
        slots(range(ENDPOINTS_MAX + 1))
