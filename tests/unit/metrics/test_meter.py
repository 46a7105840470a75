"""Totals that only grow."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dunlin_metrics.meter import Meter, Part, Sample, Source, Target

A: Target = ("pod", "default", "a", "n1")
B: Target = ("pod", "default", "b", "n1")
PORT: Source = ("port", "veth-a")


def one(*values: int, target: Target = A, source: Source = PORT) -> Sample:
    """A sample of one part."""
    return Sample(source, (Part(target, values),))


def group(*parts: tuple[Target, int]) -> Sample:
    """A sample of a group: packets of each bucket."""
    return Sample(("group", "1"), tuple(Part(target, (packets,)) for target, packets in parts))


def values(meter: Meter, target: Target = A) -> list[int]:
    """The total of a target."""
    return meter.totals[target].values


def test_differences_add_up() -> None:
    """A first reading counts in full, later ones by their difference."""
    meter = Meter()
    for reading in (5, 5, 12):
        meter.account("n1", [one(reading)], 1)
    assert values(meter) == [12]


def test_a_counter_that_begins_anew() -> None:
    """When a counter falls, all of the new reading is new."""
    meter = Meter()
    for reading in (100, 30, 40):
        meter.account("n1", [one(reading)], 1)
    assert values(meter) == [140]


def test_one_number_that_falls_resets_the_source() -> None:
    """Bytes and packets of a port begin anew together, also if one of them is larger already."""
    meter = Meter()
    meter.account("n1", [one(100, 10)], 1)
    meter.account("n1", [one(150, 2)], 2)
    assert values(meter) == [250, 12]


def test_read_twice() -> None:
    """The same reading again adds nothing."""
    meter = Meter()
    meter.account("n1", [one(100)], 1)
    assert meter.account("n1", [one(100)], 2) == {A: [0]}
    assert values(meter) == [100]


def test_left_out_for_a_while() -> None:
    """A source missing from some readings (of a flowctl just started) is not counted twice."""
    meter = Meter()
    meter.account("n1", [one(100)], 1)
    meter.account("n1", [], 2)
    meter.account("n1", [one(110)], 3)
    assert values(meter) == [110]


def test_two_switches_are_two_sources() -> None:
    """Equal names on different switches do not mix; their targets may be the same."""
    meter = Meter()
    meter.account("n1", [one(100)], 1)
    meter.account("n2", [one(7)], 1)
    meter.account("n1", [one(101)], 2)
    assert values(meter) == [108]


def test_two_sources_of_one_target() -> None:
    """Several flows of one pair of nodes add up; one installed anew does not disturb the other."""
    meter = Meter()
    flows: list[Source] = [("flow", "r", "60", "a"), ("flow", "r", "60", "b")]
    meter.account("n1", [one(1000, source=flows[0]), one(10, source=flows[1])], 1)
    meter.account("n1", [one(1000, source=flows[0]), one(2, source=flows[1])], 2)
    assert values(meter) == [1012]


def test_group_with_a_new_endpoint() -> None:
    """A group that is modified begins anew: every bucket counts in full, whoever had it before."""
    meter = Meter()
    meter.account("n1", [group((A, 50), (B, 40))], 1)
    meter.account("n1", [group((B, 3), (A, 1))], 2)
    assert values(meter, A) == [51]
    assert values(meter, B) == [43]


def test_group_whose_buckets_are_named_anew() -> None:
    """If nothing fell, a bucket that changed its endpoint brings only what is new to that one."""
    meter = Meter()
    meter.account("n1", [group((A, 50))], 1)
    meter.account("n1", [group((B, 52))], 2)
    assert values(meter, A) == [50]
    assert values(meter, B) == [2]


def test_filler_bucket() -> None:
    """Two buckets of one endpoint add up."""
    meter = Meter()
    meter.account("n1", [group((A, 5), (B, 4), (B, 1))], 1)
    assert values(meter, B) == [5]


def test_forgetting() -> None:
    """Targets are shown for a while after they are gone, then no more; live and idle ones stay."""
    meter = Meter()
    other = one(1, target=B, source=("port", "veth-b"))
    meter.account("n1", [one(100), other], 1000)
    meter.account("n1", [other], 2000)
    meter.forget(500)
    assert A in meter.totals
    meter.forget(1500)
    assert meter.totals.keys() == {B}
    meter.account("n1", [other], 3000)
    assert values(meter, B) == [1]


def test_a_silent_switch_is_not_forgotten() -> None:
    """A switch that cannot be read keeps its readings and totals, however long it takes."""
    meter = Meter()
    meter.account("n1", [one(100)], 1000)
    meter.forget(999_999)
    assert values(meter) == [100]
    meter.account("n1", [one(101)], 1_000_000)
    assert values(meter) == [101]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("traffic"), st.integers(0, 50)),
        st.tuples(st.sampled_from(["poll", "blind poll", "reinstall"]), st.just(0)),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_never_falls_and_never_exceeds_the_truth(steps: list[tuple[str, int]]) -> None:
    """Whatever is installed anew or left out, a total only grows, and never beyond what passed."""
    meter, counter, passed, shown = Meter(), 0, 0, 0
    for at, (what, amount) in enumerate(steps):
        if what == "traffic":
            counter += amount
            passed += amount
        elif what == "reinstall":
            counter = 0
        else:
            meter.account("n1", [one(counter)] if what == "poll" else [], at)
        total = meter.totals[A].values[0] if A in meter.totals else 0
        assert shown <= total <= passed
        shown = total


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.booleans()), max_size=40))
def test_exact_when_polled_before_each_reinstallation(steps: list[tuple[int, bool]]) -> None:
    """Nothing is lost if every reading comes before the counter begins anew."""
    meter, counter, passed = Meter(), 0, 0
    for at, (amount, anew) in enumerate(steps):
        counter += amount
        passed += amount
        meter.account("n1", [one(counter)], at)
        assert values(meter) == [passed]
        if anew:
            counter = 0
            meter.account("n1", [one(counter)], at)
