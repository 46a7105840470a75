"""The oracle of tests of real connections: it knows chance, and it finds a skew."""

import random
from collections import Counter

import pytest

from tests.fixtures.spread import COMPARISONS, FALSE_ALARM, chance, is_even, upper_tail

COUNTS = (3, 9, 10, 33, 100)
PER_ENDPOINT = 200


@pytest.mark.parametrize(
    ("x", "df", "expected"),
    [(3.841, 1, 0.05), (5.991, 2, 0.05), (27.877, 9, 0.001), (18.307, 10, 0.05),
     (46.194, 32, 0.05), (123.225, 99, 0.05), (10.828, 1, 0.001), (23.513, 6, 0.00064)],
)  # fmt: skip
def test_chances_are_those_of_the_tables(x: float, df: int, expected: float) -> None:
    """Of any table of the chi-squared distribution."""
    assert upper_tail(x, df) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("count", COUNTS)
def test_what_chance_gives_is_even(count: int) -> None:
    """Connections thrown at random; the chances themselves are spread evenly over 0 … 1."""
    dice = random.Random(count)  # noqa: S311 - no secret
    found = []
    for _ in range(60):
        seen = Counter(str(dice.randrange(count)) for _ in range(PER_ENDPOINT * count))
        assert is_even(seen, count)
        found.append(chance(seen, count))
    assert 0.3 < sum(found) / len(found) < 0.7


@pytest.mark.parametrize("count", COUNTS)
def test_a_skew_is_found(count: int) -> None:
    """Some have 1.25 times the mean, some 0.75: far below the 2:1 of old switches, and refused."""
    weights = [1.25 if i % 2 else 0.75 for i in range(count)]
    dice = random.Random(count)  # noqa: S311 - no secret
    for _ in range(20):
        seen = Counter(map(str, dice.choices(range(count), weights, k=2 * PER_ENDPOINT * count)))
        assert not is_even(seen, count), chance(seen, count)


def test_an_endpoint_that_is_left_out_is_found() -> None:
    """One of ten has nothing."""
    assert not is_even(Counter({str(i): PER_ENDPOINT for i in range(9)}), 10)


def test_false_alarms_are_bounded() -> None:
    """By the number of comparisons in a run, not by each of them."""
    even = Counter({"a": 100, "b": 100})
    assert chance(even, 2) == 1.0
    assert FALSE_ALARM <= 1e-6
    assert upper_tail(27.877, 9) > FALSE_ALARM / COMPARISONS
