"""Typed reading of streams."""

from ipaddress import ip_address

import pytest

from dunlin import subjects, wire
from dunlin.bus.base import TOMBSTONE, Batch, Record
from dunlin.events.facts import AnyFact, NodeFact, PodFact
from dunlin.events.intents import AnyIntent, RouteIntent
from dunlin.model.addresses import MacAddress
from dunlin.service.metrics import Metrics
from dunlin.service.reader import Bad, Change, Name, Table, name_of, read

POD = PodFact(namespace="shop", name="web.1", ips=(ip_address("fd00::1"),))


def record(subject: str, data: bytes, seq: int = 1) -> Record:
    """A record."""
    return Record(subject, data, seq, 0)


def batch(*records: Record, reset: bool = False) -> Batch:
    """A caught-up batch."""
    return Batch(records, "e", records[-1].seq if records else 0, caught_up=True, reset=reset)


def bad_input(metrics: Metrics, kind: str, reason: str) -> float:
    """The counter's value."""
    labels = {"service": "test", "kind": kind, "reason": reason}
    return metrics.registry.get_sample_value("dunlin_bad_input_total", labels) or 0.0


def test_names_from_subjects() -> None:
    """Subjects of facts and intents say what they are about, dots and all."""
    assert name_of(POD.subject) == Name("pod", "shop", "web.1")
    assert str(name_of(subjects.fact("node", "", "n.1"))) == "node/n.1"
    intent = RouteIntent(
        scope="all", key="n1", cidrs=(), addresses=(), router_mac=MacAddress("02:00:00:00:00:01")
    )
    assert name_of(intent.subject) == Name("route", "all", "n1")
    assert name_of("dunlin.v1.applied.n1") is None
    assert name_of("elsewhere") is None
    assert isinstance(read(record(intent.subject, wire.encode(intent)), AnyIntent), Change)


@pytest.mark.parametrize(
    ("subject", "data", "reason"),
    [
        (POD.subject, b"{", "syntax"),
        (POD.subject, b"\xff\xfe", "syntax"),
        (POD.subject, b'{"kind":"pod"}', "shape"),
        (
            POD.subject,
            b'{"kind":"pod","name":"web.1","namespace":"shop","ips":["10.0.0"]}',
            "shape",
        ),
        (subjects.fact("yeti", "", "x"), b'{"kind":"yeti","name":"x"}', "unknown-kind"),
        (subjects.fact("pod", "shop", "other"), wire.encode(POD), "name"),
        ("dunlin.v1.applied.n", wire.encode(POD), "subject"),
    ],
)
def test_bad_input_is_named_and_counted(subject: str, data: bytes, reason: str) -> None:
    """Nothing raises; the reason is a fixed word, and the metric counts it."""
    found = read(record(subject, data), AnyFact)
    assert isinstance(found, Bad)
    assert found.reason == reason
    metrics = Metrics("test", "0")
    table = Table[object](AnyFact, metrics)
    assert table.apply(batch(record(subject, data))) == []
    name = name_of(subject)
    kind = "?" if name is None or reason == "unknown-kind" else name.kind
    assert bad_input(metrics, kind, reason) == 1


def test_table_follows_a_stream() -> None:
    """Values come, change and go; the state of an object whose newest message is bad stays."""
    table = Table[PodFact | NodeFact](AnyFact)
    changes = table.apply(batch(record(POD.subject, wire.encode(POD), 1)))
    assert changes == [
        Change(Name("pod", "shop", "web.1"), POD, record(POD.subject, wire.encode(POD), 1))
    ]
    assert (table.values, table.seq, table.epoch) == ({POD.subject: POD}, 1, "e")
    assert table.apply(batch(record(POD.subject, b"{", 2))) == []
    assert table.values[POD.subject] == POD
    assert table.bad[POD.subject].record.seq == 2
    assert table.seq == 2
    (gone,) = table.apply(batch(record(POD.subject, TOMBSTONE, 3)))
    assert (gone.name, gone.value) == (Name("pod", "shop", "web.1"), None)
    assert (table.values, table.bad) == ({}, {})


def test_reset_empties_the_table() -> None:
    """After a reset only the new stream's state counts."""
    table = Table[PodFact | NodeFact](AnyFact)
    node = NodeFact(name="n")
    table.apply(batch(record(POD.subject, wire.encode(POD), 7)))
    table.apply(batch(record(node.subject, wire.encode(node), 1), reset=True))
    assert list(table.values) == [node.subject]
    assert list(table.of_kind("node")) == [node]
    assert table.seq == 1
