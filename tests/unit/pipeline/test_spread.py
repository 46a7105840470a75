"""Even spread of select groups, by OVS's own rule for slots."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin.openflow.flow import Bucket, Group, Output, ToGroup
from dunlin.pipeline.spread import ENDPOINTS_MAX, TooManyEndpoints, even_weights, spread_groups


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


def shares(groups: tuple[Group, ...]) -> dict[int, float]:
    """The probability of each output port through one or two levels."""
    by_id = {group.group_id: group for group in groups}
    found: dict[int, float] = {}

    def walk(group: Group, weight: float) -> None:
        slots = ovs_slots(group)
        total = sum(slots.values())
        for index, bucket in enumerate(group.buckets):
            (action,) = bucket.actions
            part = weight * slots[index] / total
            if isinstance(action, ToGroup):
                walk(by_id[action.group_id], part)
            else:
                assert isinstance(action, Output)
                found[action.port] = found.get(action.port, 0.0) + part

    walk(groups[-1], 1.0)
    return found


@pytest.mark.parametrize(
    "count", [1, 2, 3, 9, 10, 15, 16, 17, 33, 64, 65, 100, 250, 255, 1000, 5000]
)
def test_every_share_is_near_the_mean(count: int) -> None:
    """No endpoint gets more than 1.25 times or less than 0.75 times its fair share."""
    groups = spread_groups(0x100, list(range(1, count + 1)), lambda port: (Output(port),))
    found = shares(groups)
    assert sorted(found) == list(range(1, count + 1))
    assert max(found.values()) <= 1.25 / count
    assert min(found.values()) >= 0.75 / count


def test_the_model_shows_the_skew_of_equal_weights() -> None:
    """The oracle can fail: nine equal weights on 16 slots differ by 2:1."""
    buckets = tuple(Bucket(i, (Output(i + 1),)) for i in range(9))
    found = shares((Group(1, "select", buckets),))
    assert max(found.values()) == 2 * min(found.values())


@given(st.integers(1, 255))
def test_weights_make_256_slots(count: int) -> None:
    """Weights sum to 256 and the smallest is 1, whatever the number of endpoints."""
    weights = even_weights(count)
    assert len(weights) == count + 1
    assert sum(weights) == 256
    assert weights[-1] == 1


def test_inner_groups_come_first_and_hash_differently() -> None:
    """A group is there before the one that names it, and no two levels use the same hash basis."""
    *inner, outer = spread_groups(0x100, list(range(500)), lambda port: (Output(port),))
    named = [a.group_id for b in outer.buckets for a in b.actions if isinstance(a, ToGroup)]
    assert set(named) == {group.group_id for group in inner}
    bases = [group.hash_basis for group in inner]
    assert 0 not in bases
    assert outer.hash_basis == 0
    assert len(set(bases)) == len(bases)


def test_too_many_endpoints_are_refused_by_name() -> None:
    """Beyond two levels the error says how many there are and may be."""
    with pytest.raises(TooManyEndpoints, match=str(ENDPOINTS_MAX)):
        spread_groups(0x100, range(ENDPOINTS_MAX + 1), lambda port: (Output(port),))
