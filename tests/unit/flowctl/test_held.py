"""What waits for the rest of its change: the oldest of it, whatever came and went."""

from hypothesis import given
from hypothesis import strategies as st

from dunlin.events.intents import PolicyGenerationIntent
from dunlin_flowctl.core.held import Held, Version

KEYS = st.sampled_from("abcd")


@given(st.lists(st.tuples(st.sampled_from(["keep", "drop"]), KEYS)))
def test_the_oldest_that_waits(history: list[tuple[str, str]]) -> None:
    """A newer version waits since the first one; what is gone and comes again waits anew."""
    held, since = Held(), dict[str, int]()
    for revision, (what, key) in enumerate(history, 1):
        intent = PolicyGenerationIntent(scope="all", key=key, generation=1, change=1)
        if what == "keep":
            assert held.keeps(Version(intent, revision))
            since.setdefault(intent.id, revision)
        else:
            held.drop(intent.id)
            since.pop(intent.id, None)
        assert held.first == min(since.values(), default=None)
        assert set(held) == since.keys()


def test_what_has_left_is_forgotten() -> None:
    """However much has waited: nothing is kept of it."""
    held = Held()
    for revision in range(1, 1_000):
        intent = PolicyGenerationIntent(scope="all", key=str(revision), generation=1, change=1)
        held.keeps(Version(intent, revision))
        assert held.first == revision
        held.drop(intent.id)
        assert held.first is None
    assert len(held._order) == 0
