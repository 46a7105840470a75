"""From streams and counters to totals, spreads and latencies."""

import msgspec
import pytest

from dunlin import subjects
from dunlin.bus.base import Record
from dunlin_metrics import views
from dunlin_metrics.core import step
from dunlin_metrics.events import StreamRead, Tick
from dunlin_metrics.state import State
from tests.fixtures import cluster
from tests.unit.metrics.build import (
    applied,
    facts,
    flow,
    group,
    intents,
    poll,
    port,
    read,
    record,
    started,
    web,
)

E1, E2, E3 = "10.0.1.11:8080", "10.0.1.12:8080", "10.0.2.11:8080"


def shares_of(state: State) -> dict[str, tuple[int, float | None]]:
    """Endpoint -> (recent connections, measured share) of the Service `web`."""
    (service,) = views.services(state)
    return {e["endpoint"]: (e["recent_connections"], e["share"]) for e in service["endpoints"]}


def test_traffic_of_a_pod_is_from_its_view() -> None:
    """What the switch sends is what the Pod receives."""
    state = started()
    poll(state, 1, port("p11", received=7, sent=3))
    (row,) = views.traffic_of_pods(state)
    rates = {name: row.pop(name) for name in list(row) if name.endswith("_per_s")}
    assert set(rates.values()) == {0.0}
    assert row == {
        "namespace": "default", "name": "p11", "node": "n1",
        "receive_bytes": 700, "receive_packets": 7, "receive_drops": 1,
        "transmit_bytes": 300, "transmit_packets": 3, "transmit_drops": 2,
    }  # fmt: skip


def test_traffic_between_nodes() -> None:
    """All flows of a route add up; a node's route to itself counts nothing."""
    state = started()
    poll(state, 1, flow("n2", 5, "v4"), flow("n2", 6, "v6"), flow("n1", 99))
    (row,) = views.traffic_of_nodes(state)
    assert (row["source"], row["destination"], row["bytes"], row["packets"]) == (
        "n1",
        "n2",
        1100,
        11,
    )


def test_rates() -> None:
    """Growth per second between the last two readings of a switch."""
    state = started()
    for at_ms, packets in ((1000, 50), (3000, 60), (3500, 60)):
        poll(state, at_ms, flow("n2", packets))
        expected = {1000: 0.0, 3000: 5.0, 3500: 0.0}[at_ms]
        assert views.traffic_of_nodes(state)[0]["packets_per_s"] == expected


def test_flow_installed_anew() -> None:
    """A flow that was deleted and added counts on."""
    state = started()
    poll(state, 1, flow("n2", 500))
    poll(state, 2)
    poll(state, 3, flow("n2", 4))
    assert views.traffic_of_nodes(state)[0]["packets"] == 504


def test_pod_recreated_under_its_name() -> None:
    """A Pod of the same name with another port adds to the same series."""
    state = started()
    poll(state, 1, port("p11", received=7))
    again = port("p11", received=9)
    poll(state, 2, msgspec.structs.replace(again, name="veth-other"))
    assert views.traffic_of_pods(state)[0]["receive_packets"] == 16


def test_flowctl_restarts() -> None:
    """While a new flowctl lacks its intents nothing is lost and nothing counted twice."""
    state = started()
    ports, known = port("p11", received=7), group((E1, 10), (E2, 8), (E2, 1))
    poll(state, 1, ports, flow("n2", 5), known)
    nameless = msgspec.structs.replace(ports, intent="", tx_packets=9, tx_bytes=900)
    poll(state, 2, nameless, group((E1, 12), (E2, 8), (E2, 1), intent=""), group(("", 12), ("", 9)))
    poll(state, 3, port("p11", received=9), flow("n2", 6), group((E1, 13), (E2, 8), (E2, 1)))
    assert views.traffic_of_pods(state)[0]["receive_packets"] == 9
    assert views.traffic_of_nodes(state)[0]["packets"] == 6
    (service,) = views.services(state)
    assert [e["connections"] for e in service["endpoints"]] == [13, 9]


def test_spread() -> None:
    """Shares are of the connections since the endpoints changed; a group counts from there."""
    state = started()
    assert shares_of(state) == {E1: (0, None), E2: (0, None)}
    poll(state, 1, group((E1, 1), (E2, 1), (E2, 0)))
    assert shares_of(state) == {E1: (1, 0.5), E2: (1, 0.5)}
    poll(state, 2, group((E1, 30), (E2, 9), (E2, 1)))
    assert shares_of(state) == {E1: (30, 0.75), E2: (10, 0.25)}
    (service,) = views.services(state)
    assert [e["ratio"] for e in service["endpoints"]] == [1.5, 0.5]
    assert [e["intended"] for e in service["endpoints"]] == [0.5, 0.5]
    assert [e["pod"] for e in service["endpoints"]] == ["default/p11", "default/p12"]


def test_spread_over_several_switches() -> None:
    """Connections from all nodes count together."""
    state = started()
    for node in ("n1", "n2"):
        poll(state, 1, group((E1, 0), (E2, 0), (E2, 0)), node=node)
        poll(state, 2, group((E1, 3), (E2, 1), (E2, 0)), node=node)
    assert shares_of(state) == {E1: (6, 0.75), E2: (2, 0.25)}


def test_spread_begins_anew_with_other_endpoints() -> None:
    """A new endpoint is not compared with the connections of before it came; totals go on."""
    state = started()
    poll(state, 1, group((E1, 0), (E2, 0), (E2, 0)))
    poll(state, 2, group((E1, 30), (E2, 30), (E2, 0)))
    read(state, subjects.INTENTS_STREAM, web(E1, E2, E3))
    assert shares_of(state) == {E1: (0, None), E2: (0, None), E3: (0, None)}
    poll(state, 3, group((E1, 2), (E2, 1), (E3, 1), (E3, 0)))
    assert shares_of(state) == {E1: (2, 0.5), E2: (1, 0.25), E3: (1, 0.25)}
    (service,) = views.services(state)
    assert [e["connections"] for e in service["endpoints"]] == [32, 31, 1]
    read(state, subjects.INTENTS_STREAM, web(E1, E2, E3))
    assert shares_of(state)[E1] == (2, 0.5)


def test_families_are_spread_on_their_own() -> None:
    """One IPv6 endpoint is intended to get all IPv6 connections, beside two IPv4 ones."""
    state = started()
    read(state, subjects.INTENTS_STREAM, web(E1, E2, "[fd00:1::11]:8080"))
    poll(state, 1, group((E1, 0), (E2, 0), (E2, 0)))
    six = msgspec.structs.replace(group(("[fd00:1::11]:8080", 5)), group_id=2 << 16)
    poll(state, 2, group((E1, 2), (E2, 2), (E2, 0)), six)
    (service,) = views.services(state)
    assert [e["intended"] for e in service["endpoints"]] == [0.5, 0.5, 1.0]
    assert [e["share"] for e in service["endpoints"]] == [0.5, 0.5, 1.0]


def test_latency_is_reported_once_for_each_revision() -> None:
    """Each revision that a switch acknowledges is measured once; what was there before is not."""
    state = State()
    first = read(state, subjects.STATE_STREAM, applied("n1", 5, programming_ms=9.0))
    assert first.latencies_ms == ()
    for revision, expected in ((6, (("n1", 9.0),)), (6, ()), (7, (("n1", 9.0),))):
        outcome = read(state, subjects.STATE_STREAM, applied("n1", revision, programming_ms=9.0))
        assert outcome.latencies_ms == expected
    assert read(state, subjects.STATE_STREAM, applied("n1", 8)).latencies_ms == ()


def test_bad_records() -> None:
    """A record that does not parse is named, what was known stays, the rest is read."""
    state = started()
    bad = Record(subjects.fact("node", "", "n1"), b'{"kind":"node","name":5}', 77, 0)
    good = record(applied("n3"))
    outcome = step(state, StreamRead(subjects.FACTS_STREAM, (bad, good), caught_up=True))
    ((kind, text),) = outcome.bad
    assert kind == "fact"
    assert text.startswith(f"{bad.subject}: seq 77: ")
    assert state.nodes["n1"].ready
    assert "n3" in state.applied


def test_tombstones() -> None:
    """What is deleted is not shown any more."""
    state = started()
    messages = (*map(record, facts()), *map(record, intents()), record(applied("n1")))
    for message in (*messages, record(applied("n2"))):
        gone = Record(message.subject, b"", 9, 0)
        step(state, StreamRead("any", (gone,), caught_up=True))
    assert views.topology(state) == {"nodes": [], "links": [], "pods": []}
    assert views.services(state) == []
    assert state.spreads == {}


@pytest.mark.parametrize(
    "stream", [subjects.FACTS_STREAM, subjects.INTENTS_STREAM, subjects.STATE_STREAM]
)
def test_new_stream(stream: str) -> None:
    """A stream that begins anew is read anew, and the totals go on."""
    state = started()
    poll(state, 1, port("p11", received=7), flow("n2", 5))
    step(state, StreamRead(stream, (), reset=True))
    assert stream not in state.caught_up
    everything = {
        subjects.FACTS_STREAM: tuple(map(record, facts())),
        subjects.INTENTS_STREAM: tuple(map(record, intents())),
        subjects.STATE_STREAM: (record(applied("n1")), record(applied("n2", connected=False))),
    }
    step(state, StreamRead(stream, everything[stream], caught_up=True))
    poll(state, 2, port("p11", received=8), flow("n2", 6))
    assert [node | {"polled_ms": None} for node in views.topology(state)["nodes"]] == (
        views.topology(started())["nodes"]
    )
    assert views.traffic_of_pods(state)[0]["receive_packets"] == 8
    assert views.traffic_of_nodes(state)[0]["packets"] == 6


def test_retention() -> None:
    """A Pod that is gone is shown until a Tick says that it has been gone for long."""
    state = started()
    poll(state, 1000, port("p11", received=7), port("p12", received=1))
    poll(state, 5000, port("p12", received=1))
    step(state, Tick(900))
    assert len(views.traffic_of_pods(state)) == 2
    step(state, Tick(2000))
    assert [row["name"] for row in views.traffic_of_pods(state)] == ["p12"]


def test_topology() -> None:
    """Nodes with their switches, links with their way, Pods with interfaces and those that wait."""
    state = started()
    poll(state, 1, flow("n2", 5))
    found = views.topology(state)
    assert [(n["name"], n["connected"], n["flows"]) for n in found["nodes"]] == [
        ("n1", True, 100),
        ("n2", False, 100),
    ]
    assert found["nodes"][0]["dpid"] == "0000000000000001"
    assert [(k["source"], k["destination"], k["via"], k["packets"]) for k in found["links"]] == [
        ("n1", "n2", "direct", 5),
        ("n2", "n1", "direct", 0),
    ]
    pods = {pod["name"]: pod for pod in found["pods"]}
    assert pods.keys() == {"p11", "p12", "p21", "waiting"}
    assert pods["p11"]["ips"] == ["10.0.1.11", "fd00:1::11"]
    assert (pods["p11"]["attached"], pods["waiting"]["attached"]) == (True, False)


def test_links_in_a_tunnel() -> None:
    """A link says which tunnel carries it, and nothing where there is no way."""
    state = started(tunnel=True)
    assert {link["via"] for link in views.topology(state)["links"]} == {"geneve"}
    read(state, subjects.INTENTS_STREAM, cluster.switch(1))
    assert views.link_via(state, "n1", "n2") == ""
