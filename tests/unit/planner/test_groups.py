"""Group ids are a function of the set of keys."""

from hypothesis import given
from hypothesis import strategies as st

from dunlin_planner.core.groups import SLOTS, GroupIds, GroupKey, _hash

SMALL = 23
KEYS = [GroupKey("ns", f"s{n}", "", "TCP", 4) for n in range(16)]


def by_definition(keys: set[GroupKey], slots: int) -> dict[GroupKey, int]:
    """In the order of the keys, each takes its first free hash."""
    taken: dict[int, GroupKey] = {}
    for key in sorted(keys):
        salt = 0
        while (slot := _hash(key, salt, slots)) in taken:
            salt += 1
        taken[slot] = key
    return {key: slot << 8 for slot, key in taken.items()}


@given(st.lists(st.tuples(st.booleans(), st.sampled_from(KEYS)), max_size=80))
def test_any_history_gives_the_same_ids(history: list[tuple[bool, GroupKey]]) -> None:
    """After every step the ids are those of the definition, and the moves are told exactly."""
    ids = GroupIds(SMALL)
    keys: set[GroupKey] = set()
    before: dict[GroupKey, int] = {}
    for add, key in history:
        moved = ids.add(key) if add else ids.remove(key)
        keys = keys | {key} if add else keys - {key}
        after = by_definition(keys, SMALL)
        assert {known: ids.group_id(known) for known in keys} == after
        assert moved == {k for k, group in after.items() if before.get(k) != group}
        before = after
    for key in list(keys):
        ids.remove(key)
    assert not ids._holder
    assert not ids._waiting
    assert not ids._refused


def test_the_examples_do_collide() -> None:
    """The test above would prove nothing if no two keys ever met."""
    firsts = [_hash(key, 0, SMALL) for key in KEYS]
    assert len(set(firsts)) < len(firsts) - 2


def test_ids_leave_room_for_inner_groups() -> None:
    """The last id's 256 inner groups end below OpenFlow's OFPG_MAX (0xffffff00)."""
    assert (SLOTS << 8) + 0xFF < 0xFFFFFF00
    ids = GroupIds()
    ids.add(KEYS[0])
    assert ids.group_id(KEYS[0]) % 256 == 0
    assert 0 < ids.group_id(KEYS[0]) <= SLOTS << 8


def test_ids_do_not_change_between_releases() -> None:
    """They stand on switches: another hash would rebuild every group at an upgrade."""
    ids = GroupIds()
    key = GroupKey("default", "web", "http", "TCP", 4)
    ids.add(key)
    assert hex(ids.group_id(key)) == "0x8a357800"
