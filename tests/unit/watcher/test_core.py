"""The watcher's decisions: what is published, when a fact is deleted, when a sync is covered."""

import json

import msgspec
import pytest

from dunlin_watcher.core import missing, reached, step, take
from dunlin_watcher.events import (
    Bookmark,
    Gone,
    LeadershipChanged,
    ListEnded,
    ListStarted,
    Published,
    Refused,
    Seen,
    StreamRead,
)
from dunlin_watcher.state import State
from tests.unit.watcher.streams import Stream, listed, publish, raw, started


def test_nothing_before_the_stream_is_known() -> None:
    """What the stream holds must be known before anything is written."""
    state = State()
    listed(state, raw("a", 1))
    assert take(state, 10) == []
    step(state, StreamRead("e1", (), caught_up=True))
    assert len(take(state, 10)) == 1


def test_equal_facts_are_published_once() -> None:
    """A new resourceVersion alone is nothing to publish; what is published has newest meta."""
    state, stream = started(), Stream()
    listed(state, raw("a", 1))
    (message,) = publish(state, stream)
    assert msgspec.json.decode(message.data)["meta"]["resource_version"] == "1"
    step(state, Seen("pod", raw("a", 2), 2))
    assert publish(state, stream) == []
    step(state, Seen("pod", raw("a", 3, "10.0.0.2"), 3))
    (message,) = publish(state, stream)
    meta = msgspec.json.decode(message.data)["meta"]
    assert meta == {"resource_version": "3", "uid": "uid-a", "observed_ms": 3}


def test_changes_coalesce() -> None:
    """Three changes before a publication are one message; there and back again is none."""
    state, stream = started(), Stream()
    listed(state, raw("a", 1))
    publish(state, stream)
    for version, ip in ((2, "10.0.0.2"), (3, "10.0.0.3"), (4, "10.0.0.1")):
        step(state, Seen("pod", raw("a", version, ip), 1))
    assert publish(state, stream) == []


def test_change_while_under_way() -> None:
    """What changes while its message is under way is published after it, also back again."""
    state, stream = started(), Stream()
    listed(state, raw("a", 1))
    publish(state, stream)
    step(state, Seen("pod", raw("a", 2, "10.0.0.2"), 1))
    ((address, message),) = take(state, 10)
    step(state, Seen("pod", raw("a", 3, "10.0.0.1"), 1))
    assert take(state, 10) == []
    seq = stream.store(message)
    assert seq is not None
    step(state, Published(address, seq))
    publish(state, stream)
    assert stream.alive()["a"]["ips"] == ["10.0.0.1"]
    assert len(stream.log) == 3


def test_no_tombstone_before_a_complete_list() -> None:
    """What the API has not shown stays in the stream until its kind's list is complete."""
    stream = Stream()
    first = started()
    listed(first, raw("a", 1), raw("b", 2))
    publish(first, stream)
    state = started(stream)
    step(state, ListStarted("pod"))
    step(state, Seen("pod", raw("a", 1), 1))
    assert publish(state, stream) == []
    step(state, ListStarted("node"))
    step(state, ListEnded("node", "5"))
    assert publish(state, stream) == []
    step(state, ListEnded("pod", "5"))
    (message,) = publish(state, stream)
    assert message.data == b""
    assert stream.alive().keys() == {"a"}
    assert state.kinds["pod"].entries.keys() == {"default/a"}


def test_an_unfinished_list_deletes_nothing() -> None:
    """A list begun again halfway does not take its first half for all there is."""
    state, stream = started(), Stream()
    listed(state, raw("a", 1), raw("b", 2))
    publish(state, stream)
    step(state, ListStarted("pod"))
    step(state, Seen("pod", raw("a", 1), 1))
    listed(state, raw("a", 1), raw("b", 2), version=1001)
    assert publish(state, stream) == []


def test_garbage_in_the_stream() -> None:
    """A record that does not parse is reported, and replaced or deleted in time."""
    stream = Stream()
    first = started()
    listed(first, raw("a", 1))
    publish(first, stream)
    subject = next(iter(stream.last))
    stream.write(subject, b"{")
    stream.write(subject.replace("default.a", "default.ghost"), b"[]")
    state = State()
    step(state, LeadershipChanged())
    report = step(state, StreamRead("e1", tuple(stream.last.values()), caught_up=True))
    assert [word for word, _text in report.bad] == ["fact", "fact"]
    assert subject in report.bad[0][1]
    assert publish(state, stream) == []
    listed(state, raw("a", 1))
    assert [message.data == b"" for message in publish(state, stream)] == [False, True]
    assert stream.alive().keys() == {"a"}


def test_bad_object_keeps_its_last_good_fact_over_a_restart() -> None:
    """An object gone bad while no watcher ran keeps the fact that the stream holds."""
    stream = Stream()
    first = started()
    listed(first, raw("a", 1))
    publish(first, stream)
    bad = json.loads(raw("a", 2))
    bad["spec"] = 5
    state = started(stream)
    listed(state, json.dumps(bad).encode())
    assert publish(state, stream) == []
    assert state.bad_objects() == {"pod default/a": ["spec: Expected object | null, got int"]}
    step(state, Gone("pod", json.dumps(bad).encode(), 1))
    publish(state, stream)
    assert stream.alive() == {}
    assert state.bad_objects() == {}


def test_reports_are_not_repeated() -> None:
    """The same problem of the same object is reported once, another one again."""
    state = started()
    bad = json.loads(raw("a", 1, "10.0.0.999"))
    first = step(state, Seen("pod", json.dumps(bad).encode(), 1))
    assert [word for word, _ in first.bad] == ["address"]
    bad["metadata"]["resourceVersion"] = "2"
    assert step(state, Seen("pod", json.dumps(bad).encode(), 1)).bad == ()
    bad["spec"]["containers"][0]["ports"][0]["protocol"] = "FOO"
    assert [w for w, _ in step(state, Seen("pod", json.dumps(bad).encode(), 1)).bad] == ["protocol"]


def test_unsupported_is_reported_once_for_each_object() -> None:
    """An object that asks for what Dunlin does not do is named once, however often it is seen."""
    state = started()
    obj = json.loads(raw("a", 1))
    obj["spec"]["containers"][0]["ports"][0]["protocol"] = "SCTP"
    event = Seen("pod", json.dumps(obj).encode(), 1)
    assert step(state, event).unsupported == (
        ("spec.containers[].ports[].protocol=SCTP", "pod default/a"),
    )
    assert step(state, event).unsupported == ()
    assert state.unsupported_objects() == {
        "pod default/a": ["spec.containers[].ports[].protocol=SCTP"]
    }


def test_a_stale_writer_cannot_bring_the_dead_back() -> None:
    """A paused former leader's messages are refused by sequence, for facts and for tombstones."""
    stream = Stream()
    old = started()
    listed(old, raw("a", 1))
    step(old, StreamRead("e1", (), caught_up=True))
    late = take(old, 10)
    new = started(stream)
    listed(new, raw("a", 1))
    publish(new, stream)
    step(new, Gone("pod", raw("a", 2), 1))
    publish(new, stream)
    assert [stream.store(message) for _address, message in late] == [None]
    assert stream.alive() == {}


def test_recreated_object_knows_its_tombstone() -> None:
    """An object made again after its tombstone is written without a lost compare-and-set."""
    state, stream = started(), Stream()
    listed(state, raw("a", 1))
    publish(state, stream)
    step(state, Gone("pod", raw("a", 2), 1))
    publish(state, stream)
    assert state.kinds["pod"].entries == {}
    step(state, Seen("pod", raw("a", 3, uid="other"), 1))
    ((_address, message),) = take(state, 10)
    assert stream.store(message) == 3


def test_new_epoch() -> None:
    """A new stream gets everything again; an answer from the old one changes nothing."""
    state, stream = started(), Stream()
    listed(state, raw("a", 1), raw("b", 2))
    publish(state, stream)
    step(state, Seen("pod", raw("a", 3, "10.0.0.9"), 1))
    ((address, _message),) = take(state, 10)
    new = Stream()
    step(state, StreamRead("e2", (), reset=True, caught_up=True))
    step(state, Published(address, 3))
    assert len(publish(state, new)) == 2
    assert new.alive()["a"]["ips"] == ["10.0.0.9"]


def test_standby_follows() -> None:
    """A standby believes the stream, forgets what is deleted there, and publishes nothing."""
    stream = Stream()
    leader = started()
    listed(leader, raw("a", 1), raw("b", 2))
    publish(leader, stream)
    standby = State()
    step(standby, StreamRead("e1", tuple(stream.log), caught_up=True))
    assert standby.kinds["pod"].count == 2
    step(leader, Gone("pod", raw("a", 3), 1))
    publish(leader, stream)
    step(standby, StreamRead("e1", (stream.log[-1],), caught_up=True))
    assert standby.kinds["pod"].entries.keys() == {"default/b"}
    assert take(standby, 10) == []


def test_own_echo_changes_nothing() -> None:
    """What the stream shows of our own messages, late or early, leads to no message."""
    state, stream = started(), Stream()
    listed(state, raw("a", 1))
    publish(state, stream)
    step(state, Gone("pod", raw("a", 2), 1))
    publish(state, stream)
    for record in stream.log:
        step(state, StreamRead("e1", (record,), caught_up=True))
        assert take(state, 10) == []
    assert state.kinds["pod"].entries == {}


def test_tickets() -> None:
    """`oldest_ticket` passes a ticket only when everything dirty by then has been stored."""
    state, stream = started(), Stream()
    listed(state, raw("a", 1), raw("b", 2))
    ticket = state.ticket
    ((address, message),) = take(state, 1)
    assert state.oldest_ticket <= ticket
    step(state, Refused(address))
    assert state.oldest_ticket <= ticket
    publish(state, stream)
    assert state.oldest_ticket > ticket
    step(state, Seen("pod", raw("c", 3), 1))
    assert state.oldest_ticket > ticket
    assert message.expected_seq == 0


def test_refused_keeps_its_ticket() -> None:
    """A message that was not stored has been waiting since its change, not since the refusal."""
    state = started()
    listed(state, raw("a", 1))
    ticket = state.ticket
    ((address, _message),) = take(state, 1)
    step(state, Refused(address))
    assert state.oldest_ticket == ticket


def test_lost_compare_and_set() -> None:
    """After somebody else wrote the subject, what it holds is looked up and written over."""
    state, stream = started(), Stream()
    listed(state, raw("a", 1))
    (stored,) = publish(state, stream)
    stream.write(stored.subject, b"{nonsense")
    step(state, Seen("pod", raw("a", 2, "10.0.0.2"), 1))
    ((address, message),) = take(state, 1)
    assert stream.store(message) is None
    step(state, Refused(address, stream.last[message.subject], looked_up=True))
    ((_address, message),) = take(state, 1)
    assert stream.store(message) == 3


def test_one_message_of_an_object_at_a_time() -> None:
    """An object is not taken again while its message is under way."""
    state, stream = started(), Stream()
    listed(state, raw("a", 1))
    ((address, message),) = take(state, 10)
    step(state, Seen("pod", raw("a", 2, "10.0.0.2"), 1))
    assert take(state, 10) == []
    step(state, Published(address, stream.store(message) or 0))
    assert len(take(state, 10)) == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "result"),
    [
        ("10", "9", True),
        ("9", "10", False),
        ("10", "10", True),
        ("a", "a", True),
        ("b", "a", False),
    ],
)
def test_reached(ours: str, theirs: str, *, result: bool) -> None:
    """Versions compare as numbers where they are numbers, and as text only for equality."""
    assert reached(ours, theirs) is result


def test_missing() -> None:
    """A listing is covered once every object is as new, and what it lacks is gone."""
    state = started()
    listed(state, raw("a", 1), raw("b", 2), version=5)
    assert (
        missing(state, "pod", {"default/a": ("uid-a", "1"), "default/b": ("uid-b", "2")}, "5") == []
    )
    assert missing(state, "pod", {"default/a": ("uid-a", "7")}, "8") == ["default/a", "default/b"]
    step(state, Seen("pod", raw("a", 7), 1))
    assert missing(state, "pod", {"default/a": ("uid-a", "7")}, "8") == ["default/b"]
    step(state, Gone("pod", raw("b", 8), 1))
    assert missing(state, "pod", {"default/a": ("uid-a", "7")}, "8") == []
    step(state, Seen("pod", raw("c", 9), 1))
    assert missing(state, "pod", {"default/a": ("uid-a", "7")}, "8") == []
    assert missing(state, "pod", {"default/d": ("uid-d", "6")}, "8") == ["default/d", "default/a"]
    step(state, Bookmark("pod", "8"))
    assert missing(state, "pod", {}, "8") == []
