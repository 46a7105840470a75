"""Subject filters."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin.bus.filters import covers, matches, overlap, predicate, reduce_filters

TOKENS = st.sampled_from(["a", "b", "*"])
PATTERNS = st.builds(
    lambda tokens, tail: ".".join([*tokens, *tail]),
    st.lists(TOKENS, min_size=1, max_size=3),
    st.sampled_from([[], [">"]]),
)
SUBJECTS = st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=4).map(".".join)


def as_regex(pattern: str) -> str:
    """The oracle: the same pattern as a regular expression."""
    text = re.escape(pattern).replace(r"\*", r"[^.]+")
    return text.removesuffix(">") + (r".+" if pattern.endswith(">") else "")


@given(PATTERNS, SUBJECTS)
def test_matches_as_a_regular_expression(pattern: str, subject: str) -> None:
    """A pattern names exactly what its regular expression matches."""
    assert matches(pattern, subject) == bool(re.fullmatch(as_regex(pattern), subject))


@given(PATTERNS, PATTERNS, SUBJECTS)
def test_covers_and_overlap_are_about_subjects(one: str, other: str, subject: str) -> None:
    """What covers names all, what does not overlap shares nothing."""
    if covers(one, other) and matches(other, subject):
        assert matches(one, subject)
    if matches(one, subject) and matches(other, subject):
        assert overlap(one, other)


@given(st.lists(PATTERNS, max_size=4), SUBJECTS)
def test_reduced_filters_name_the_same(filters: list[str], subject: str) -> None:
    """Either an error about overlap, or disjoint filters for the same subjects."""
    try:
        reduced = reduce_filters(filters)
    except ValueError:
        return
    assert not any(overlap(a, b) for a in reduced for b in reduced if a != b)
    if filters:
        assert predicate(reduced)(subject) == any(matches(f, subject) for f in filters)


def test_examples() -> None:
    """The cases that a reader wonders about."""
    assert not matches("a.>", "a")
    assert matches("a.*", "a.b")
    assert not matches("a.*", "a.b.c")
    assert reduce_filters(["a.b", "a.>", "a.>"]) == ("a.>",)
    with pytest.raises(ValueError, match="overlap"):
        reduce_filters(["a.*", "*.b"])
