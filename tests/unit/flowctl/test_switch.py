"""What one switch holds, lacks and refused."""

from dunlin.model.ids import IntentId
from dunlin.openflow.flow import Flow, Program, match
from dunlin_flowctl.core.layer import Layer, Replaced
from dunlin_flowctl.core.program import Compiled, Workshop
from dunlin_flowctl.core.switch import RETRY_FIRST_S, Moment, Switch, Work

A, B = IntentId("n1/endpoint/a"), IntentId("n1/endpoint/b")
WORKSHOP = Workshop()


def part(intent_id: IntentId, *ports: int) -> Compiled:
    """A version of an intent: one flow a port."""
    return WORKSHOP.make(intent_id, Program(tuple(Flow(0, 1, match(in_port=p)) for p in ports)))


class Bench:
    """A synced switch and what it should hold."""

    def __init__(self) -> None:
        self.switch = Switch("n1", 1, Layer(WORKSHOP))
        self.switch.synced = True
        self.desired: dict[IntentId, Compiled | None] = {}
        self.read = 0

    def change(self, intent_id: IntentId, new: Compiled | None) -> None:
        """One message of the intent stream."""
        self.read += 1
        old = self.desired.get(intent_id)
        self.desired[intent_id] = new
        self.switch.mark({intent_id: Replaced(old, new)}, Moment(self.read, self.read * 1000))

    def take(self, now: float = 0.0, *, retry: bool = False) -> Work:
        """The next work."""
        return self.switch.take(self.desired.get, now, retry=retry)

    @property
    def revision(self) -> int:
        """What the switch holds."""
        return self.switch.revision(self.read)


def test_the_revision_follows_acknowledged_work() -> None:
    """A revision counts only when everything up to it is on the switch."""
    bench = Bench()
    assert bench.revision == 0
    bench.change(A, part(A, 1))
    bench.change(B, part(B, 2))
    assert bench.revision == 0
    work = bench.take()
    bench.change(A, part(A, 3))
    assert bench.revision == 0
    bench.switch.done(work)
    assert bench.revision == 2
    bench.switch.done(bench.take())
    assert bench.revision == 3
    assert bench.switch.flows == 2
    bench.switch.synced = False
    assert bench.revision == 0


def test_changes_while_work_is_in_flight_start_from_it() -> None:
    """The next difference is taken from what is being written."""
    bench = Bench()
    first, second = part(A, 1), part(A, 2)
    bench.change(A, first)
    work = bench.take()
    bench.change(A, second)
    bench.switch.done(work)
    assert bench.take().parts == {A: Replaced(first, second)}


def test_failed_work_is_pending_again_from_where_it_started() -> None:
    """Nothing of failed work counts, and the first revision that is lacking is remembered."""
    bench = Bench()
    first, second = part(A, 1), part(A, 2)
    bench.change(A, first)
    bench.change(B, part(B, 7))
    work = bench.take()
    bench.change(A, second)
    bench.switch.back(work)
    assert bench.revision == 0
    assert bench.switch.lacking == [A, B]
    again = bench.take()
    assert again.parts[A] == Replaced(None, second)
    bench.switch.done(again)
    assert bench.revision == 3


def test_many_changes_are_one_difference() -> None:
    """Versions in between are never written; a change and its opposite are no difference."""
    bench = Bench()
    first = part(A, 1)
    bench.change(A, first)
    bench.switch.done(bench.take())
    bench.change(A, part(A, 2))
    bench.change(A, first)
    assert bench.take().parts == {A: Replaced(first, first)}


def test_a_refused_intent_does_not_hold_up_others() -> None:
    """The rest of the work is pending again, the revision passes the refused one."""
    bench = Bench()
    bench.change(A, part(A, 1))
    bench.change(B, part(B, 2))
    work = bench.take()
    bench.switch.refuse(work, {A: "no"}, now=100.0)
    assert bench.switch.lacking == [B]
    bench.switch.done(bench.take(100.0))
    assert bench.revision == 2
    assert bench.switch.refused[A].reason == "no"


def test_a_refused_intent_is_asked_again_with_the_next_change_after_its_time() -> None:
    """Not before its back-off, and not without another change (or an audit); each time later."""
    bench = Bench()
    bench.change(A, part(A, 1))
    bench.switch.refuse(bench.take(), {A: "no"}, now=100.0)
    assert bench.switch.pending == {}
    bench.change(B, part(B, 2))
    work = bench.take(100.0 + RETRY_FIRST_S / 2)
    assert set(work.parts) == {B}
    assert work.refused == {A}
    bench.switch.done(work)
    bench.change(B, part(B, 3))
    work = bench.take(100.0 + RETRY_FIRST_S)
    assert set(work.parts) == {A, B}
    bench.switch.refuse(work, {A: "no"}, now=101.0)
    assert bench.switch.refused[A].retry_at == 101.0 + 2 * RETRY_FIRST_S
    assert bench.switch.refused[A].attempts == 2
    bench.switch.done(bench.take(101.0))
    work = bench.take(200.0, retry=True)
    assert work.parts == {A: Replaced(None, bench.desired[A])}
    bench.switch.done(work)
    assert bench.switch.refused == {}


def test_a_new_version_of_a_refused_intent_is_tried_at_once() -> None:
    """… as a difference from what the switch really holds."""
    bench = Bench()
    first, bad, good = part(A, 1), part(A, 1, 666), part(A, 2)
    bench.change(A, first)
    bench.switch.done(bench.take())
    bench.change(A, bad)
    bench.switch.refuse(bench.take(), {A: "no"}, now=100.0)
    bench.change(A, good)
    work = bench.take(100.0)
    assert work.parts == {A: Replaced(first, good)}
    bench.switch.done(work)
    assert bench.switch.refused == {}
    assert bench.revision == 3


def test_a_refusal_during_a_comparison_needs_another_comparison() -> None:
    """What stands there of an intent that was not pending is unknown: only a dump tells."""
    bench = Bench()
    bench.desired[A] = part(A, 1)
    bench.switch.refuse(bench.take(), {A: "no"}, now=0.0)
    assert bench.switch.refused[A].unsure
    bench.change(A, part(A, 2))
    assert bench.switch.suspect
