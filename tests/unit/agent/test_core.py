"""What the agent tells the bus: level-triggered, attachments before the switch, nothing twice."""

from ipaddress import ip_address, ip_network
from itertools import count

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin.events.facts import AttachmentFact, Meta, NextHop, NodeAddress, SwitchFact
from dunlin.model.addresses import MacAddress, derived_mac
from dunlin.model.ids import OfPort
from dunlin_agent import core
from dunlin_agent.adapters.ovs_spec import PodPort
from dunlin_agent.core import (
    Effect,
    FactRead,
    NeighbourSeeded,
    NodeRead,
    PortsObserved,
    Publish,
    Retract,
    Seed,
    StreamBegan,
    StreamCaughtUp,
    SwitchObserved,
    step,
)
from dunlin_agent.state import State

NODE = "node-1.example"


def port(number: int, ofport: int = 5) -> PodPort:
    """The port of Pod `web-<number>`."""
    return PodPort(
        port_name=f"dun{number}",
        pod_namespace="shop",
        pod_name=f"web-{number}",
        container_id=f"c{number}",
        ips=(ip_address("10.1.0.1") + number,),
        mac=derived_mac(str(number)),
        ofport=OfPort(ofport),
    )


def switch(name: str = NODE, host: int = 1, tunnel: int = 0) -> SwitchFact:
    """The switch of a node 172.31.<host>.1 on a /24 of its own."""
    return SwitchFact(
        name=name,
        dpid=host,
        router_mac=derived_mac("router", name),
        uplink_mac=derived_mac("uplink", name),
        gateway_port=1,
        uplink_port=2,
        tunnel_port=tunnel,
        addresses=(
            NodeAddress(
                ip=ip_address(f"172.31.{host}.1"), subnet=ip_network(f"172.31.{host}.0/24")
            ),
        ),
        incarnation="1",
    )


def after(*events: core.Event, start: State | None = None) -> State:
    """The state after these events."""
    state = start or State(NODE)
    for event in events:
        state, _ = step(state, event)
    return state


def effects(state: State) -> list[Effect]:
    """What that state asks for."""
    return list(core.plan(state))


def stream() -> core.Event:
    """A stream that has been read."""
    return StreamBegan("e1")


READ = (StreamBegan("e1"), StreamCaughtUp())


def test_nothing_before_both_sides_are_known() -> None:
    """A tombstone for what was merely not read yet would cut a Pod off."""
    stale = core.attachment_of(NODE, port(1))
    assert stale is not None
    unread = after(StreamBegan("e1"), FactRead(stale.subject, 3, stale), PortsObserved(()))
    assert effects(unread) == []
    unobserved = after(*READ, FactRead(stale.subject, 3, stale), SwitchObserved(switch()))
    assert effects(unobserved) == []


def test_attachments_first_then_the_switch() -> None:
    """The switch fact waits until the stream says the truth about every attachment."""
    state = after(*READ, PortsObserved((port(1), port(2))), SwitchObserved(switch()))
    asked = effects(state)
    assert [type(effect) for effect in asked] == [Publish, Publish]
    numbers = count(1)
    for effect in asked:
        assert isinstance(effect, Publish)
        state = after(FactRead(effect.fact.subject, next(numbers), effect.fact), start=state)
    assert effects(state) == [Publish(switch())]
    state = after(FactRead(switch().subject, 9, switch()), start=state)
    assert effects(state) == []


def test_what_is_gone_is_retracted() -> None:
    """A fact whose port is gone, or has no OpenFlow port any more, gets a tombstone, once."""
    fact = core.attachment_of(NODE, port(1))
    assert fact is not None
    for ports in ((), (port(1, ofport=0),)):
        state = after(*READ, FactRead(fact.subject, 3, fact), PortsObserved(ports))
        assert effects(state) == [Retract(fact.subject)]
        assert effects(after(FactRead(fact.subject, 4, None), start=state)) == []


def test_only_content_counts() -> None:
    """A fact that differs in when it was observed is the same; in its OpenFlow port it is not."""
    fact = core.attachment_of(NODE, port(1))
    assert fact is not None
    old = msgspec.structs.replace(fact, meta=Meta(observed_ms=77))
    state = after(*READ, FactRead(fact.subject, 3, old), PortsObserved((port(1),)))
    assert effects(state) == []
    assert core.is_stored(state, fact) == 3
    moved = after(PortsObserved((port(1, ofport=6),)), start=state)
    assert [type(effect) for effect in effects(moved)] == [Publish]


def test_a_new_stream_is_told_everything() -> None:
    """When the stream begins anew, all is published again, and only after it has been read."""
    fact = core.attachment_of(NODE, port(1))
    assert fact is not None
    state = after(*READ, FactRead(fact.subject, 3, fact), PortsObserved((port(1),)))
    state = after(StreamBegan("e2"), start=state)
    assert effects(state) == []
    assert effects(after(StreamCaughtUp(), start=state)) == [Publish(fact)]


def test_older_news_changes_nothing() -> None:
    """What we stored ourselves is not undone by reading what was there before."""
    fact = core.attachment_of(NODE, port(1))
    assert fact is not None
    state = after(*READ, PortsObserved((port(1),)), FactRead(fact.subject, 8, fact))
    assert effects(after(FactRead(fact.subject, 5, None), start=state)) == []


def test_tunnel_ends_are_seeded_once_for_each_life_of_vswitchd() -> None:
    """Peers on our subnet and our next hops; again after ovs-vswitchd was started anew."""
    hop = NextHop(ip=ip_address("172.31.1.254"), mac=MacAddress("0a:00:00:00:00:fe"))
    own = msgspec.structs.replace(switch(tunnel=3), next_hops=(hop,))
    near = msgspec.structs.replace(
        switch("near", 1),
        addresses=(NodeAddress(ip=ip_address("172.31.1.9"), subnet=ip_network("172.31.1.0/24")),),
    )
    far = switch("far", 7)
    state = after(
        SwitchObserved(own), FactRead(near.subject, 1, near), FactRead(far.subject, 2, far)
    )
    asked = effects(state)
    seeds = [effect.neighbour for effect in asked if isinstance(effect, Seed)]
    assert {(str(seed.ip), seed.mac) for seed in seeds} == {
        ("172.31.1.254", hop.mac),
        ("172.31.1.9", near.uplink_mac),
    }
    done = after(*map(NeighbourSeeded, seeds), start=state)
    assert effects(done) == []
    again = msgspec.structs.replace(own, incarnation="2")
    assert len(effects(after(SwitchObserved(again), start=done))) == 2


def test_auto_needs_a_tunnel_only_for_another_subnet() -> None:
    """Peers in one subnet need none; one that is not brings geneve; a setting decides else."""
    own = (ip_address("172.31.1.1"),)
    near = switch("near", 1)
    state = after(FactRead(near.subject, 1, near))
    assert core.tunnel_of("auto", own, state) == ""
    far = switch("far", 7)
    state = after(FactRead(far.subject, 2, far), start=state)
    assert core.tunnel_of("auto", own, state) == "geneve"
    assert core.tunnel_of("none", own, state) == ""
    assert core.tunnel_of("vxlan", own, state) == "vxlan"
    gone = after(FactRead(far.subject, 3, None), start=state)
    assert core.tunnel_of("auto", own, gone) == ""


@pytest.mark.parametrize(
    ("usable", "internal", "sources"),
    [
        ("", "192.0.2.1", ""),
        ("192.0.2.1 2001:db8::1", "", "192.0.2.1 2001:db8::1"),
        ("192.0.2.1 192.0.2.7", "192.0.2.7", "192.0.2.7"),
        ("192.0.2.1 2001:db8::1 2001:db8::7", "2001:db8::7 198.51.100.1", "192.0.2.1 2001:db8::7"),
        ("192.0.2.1 192.0.2.7", "192.0.2.7 192.0.2.1", "192.0.2.7"),
    ],
)
def test_what_the_nodes_processes_send_from(usable: str, internal: str, sources: str) -> None:
    """One address of each family: an InternalIP that stands here, else the node's first."""
    lists = [tuple(map(ip_address, words.split())) for words in (usable, internal, sources)]
    assert core.sources_of(lists[0], lists[1]) == lists[2]


def test_internal_ips_outlive_the_stream() -> None:
    """A stream that begins anew says nothing of them until it has: what is used stays."""
    state = after(NodeRead((ip_address("192.0.2.7"),)))
    assert after(StreamBegan("2"), start=state).internal_ips == (ip_address("192.0.2.7"),)
    assert effects(state) == effects(after())


@given(st.permutations(range(4)), st.permutations(range(6)))
def test_the_order_of_news_does_not_matter(ports: list[int], order: list[int]) -> None:
    """The same observations in any order, some twice, ask for the same things."""
    stale = core.attachment_of(NODE, port(9))
    assert stale is not None
    observed = PortsObserved(tuple(port(number) for number in sorted(ports)))
    news: list[core.Event] = [
        observed,
        SwitchObserved(switch()),
        StreamCaughtUp(),
        FactRead(stale.subject, 4, stale),
        observed,
        FactRead(stale.subject, 4, stale),
    ]
    expected = after(stream(), *news)
    shuffled = after(stream(), *(news[i] for i in order))
    assert effects(shuffled) == effects(expected)


def test_attachments_carry_what_ovsdb_records() -> None:
    """Subject and fields of an attachment come from the port alone."""
    fact = core.attachment_of(NODE, port(1))
    assert isinstance(fact, AttachmentFact)
    assert fact.name == "c1/eth0"
    assert fact.node == NODE
    assert (fact.pod_namespace, fact.pod_name, fact.ofport) == ("shop", "web-1", 5)


@pytest.mark.parametrize(
    ("version", "tso", "keeps"),
    [("3.1.0", True, False), ("3.1.0", False, True), ("3.5.0", True, True), ("4.0.1", True, True),
     ("", True, False), ("odd", True, False)],
)  # fmt: skip
def test_userspace_tso_and_small_mtus(version: str, *, tso: bool, keeps: bool) -> None:
    """Only versions that were seen to keep a peer's MTU do; without it all do."""
    assert core.keeps_peers_mtu(version, userspace_tso=tso) is keeps
