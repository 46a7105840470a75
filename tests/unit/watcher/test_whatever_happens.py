"""A watcher to which everything may happen, in any order."""

from hypothesis import given, settings
from hypothesis import strategies as st

from dunlin_watcher.core import step, take
from dunlin_watcher.events import (
    Gone,
    LeadershipChanged,
    ListEnded,
    ListStarted,
    Published,
    Refused,
    Seen,
    StreamRead,
)
from dunlin_watcher.kinds import KINDS
from dunlin_watcher.state import State
from tests.unit.watcher.streams import Stream, listed, publish, raw, started

NAMES = ["a", "b", "c"]
ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from(NAMES), st.integers(1, 3)),
        st.tuples(st.just("delete"), st.sampled_from(NAMES), st.just(0)),
        st.tuples(st.just("publish"), st.integers(0, 3).map(str), st.just(0)),
        st.tuples(
            st.sampled_from(["relist", "new epoch", "fail over", "lose answers", "foreign"]),
            st.sampled_from(NAMES),
            st.just(0),
        ),
    ),
    max_size=40,
)


class Machine:
    """A cluster, its stream, and a watcher to which everything may happen."""

    def __init__(self) -> None:
        self.cluster: dict[str, bytes] = {}
        self.version = 10
        self.stream = Stream()
        self.epoch = 1
        self.shown = 0
        self.state = started()
        self.relist()

    def relist(self) -> None:
        """A complete list."""
        listed(self.state, *self.cluster.values(), version=self.version)
        for kind in KINDS:
            if kind != "pod":
                step(self.state, ListStarted(kind))
                step(self.state, ListEnded(kind, "1"))

    def show(self) -> None:
        """Let the watcher read the stream to its end."""
        records = tuple(self.stream.log[self.shown :])
        self.shown = len(self.stream.log)
        step(self.state, StreamRead(f"e{self.epoch}", records, caught_up=True))

    def do(self, action: str, name: str, number: int) -> None:
        """One action."""
        self.version += 1
        match action:
            case "put":
                self.cluster[name] = raw(name, self.version, f"10.0.0.{number}")
                step(self.state, Seen("pod", self.cluster[name], 1))
            case "delete" if name in self.cluster:
                step(self.state, Gone("pod", self.cluster.pop(name), 1))
            case "publish":
                self.some(int(name))
            case "relist":
                self.relist()
            case "new epoch":
                self.stream, self.shown = Stream(), 0
                self.epoch += 1
                step(self.state, StreamRead(f"e{self.epoch}", (), reset=True, caught_up=True))
            case "fail over":
                self.state, self.shown = State(), 0
                self.show()
                step(self.state, LeadershipChanged())
                self.relist()
            case "lose answers":
                for address, message in take(self.state, 2):
                    self.stream.store(message)
                    step(self.state, Refused(address))
            case "foreign":
                self.stream.write(f"dunlin.v1.fact.pod.default.{name}", b"{nonsense")

    def some(self, count: int) -> None:
        """Publish a few, and answer."""
        for address, message in take(self.state, count):
            seq = self.stream.store(message)
            if seq is None:
                last = self.stream.last.get(message.subject)
                step(self.state, Refused(address, last, looked_up=True))
            else:
                step(self.state, Published(address, seq))


@settings(max_examples=300, deadline=None)
@given(ACTIONS)
def test_whatever_happens_the_stream_ends_as_the_cluster_is(
    actions: list[tuple[str, str, int]],
) -> None:
    """After any history the facts are those of the cluster, and stay so."""
    machine = Machine()
    for action in actions:
        machine.do(*action)
    machine.show()
    publish(machine.state, machine.stream)
    machine.show()
    publish(machine.state, machine.stream)
    fresh, reference = started(), Stream()
    listed(fresh, *machine.cluster.values())
    publish(fresh, reference)
    assert machine.stream.alive() == reference.alive()
    assert machine.state.settled
    before = machine.stream.seq
    machine.show()
    machine.relist()
    publish(machine.state, machine.stream)
    assert machine.stream.seq == before
