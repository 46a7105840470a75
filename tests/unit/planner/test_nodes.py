"""Which intents nodes, switches and blocks lead to."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any, Literal

import msgspec
import pytest

from dunlin.events.facts import (
    NetworkPolicyFact,
    NodeAddress,
    PodFact,
    ServiceCIDRFact,
    SyncFact,
)
from dunlin.events.intents import RouteIntent, SwitchIntent
from dunlin_planner.core.events import Deleted, Upserted
from dunlin_planner.core.step import findings, intents, step, waiting_nodes
from dunlin_planner.ovs_version import survives_null_nat, tracks_fragments, tracks_sctp
from dunlin_planner.state import State
from tests.unit.planner.build import CLUSTER, block, node, switch


def state_of(*facts: Any) -> State:
    """A state that was told these facts."""
    state = State(CLUSTER)
    step(state, [Upserted(fact) for fact in facts])
    return state


def switch_intent(state: State, name: str) -> SwitchIntent:
    """The SwitchIntent of one node."""
    (found,) = [
        i for i in intents(state).values() if isinstance(i, SwitchIntent) and i.scope == name
    ]
    return found


def route_intent(state: State, name: str) -> RouteIntent:
    """The RouteIntent to one node."""
    (found,) = [i for i in intents(state).values() if isinstance(i, RouteIntent) and i.key == name]
    return found


def test_a_node_gives_a_switch_and_a_route() -> None:
    """Ports, MACs and addresses are the switch's, CIDRs the node's and the cluster's."""
    state = state_of(node("n1"), switch("n1"))
    pipeline = switch_intent(state, "n1")
    assert pipeline.id == "n1/switch/pipeline"
    assert pipeline.object == "node/n1"
    assert pipeline.dpid == switch("n1").dpid
    assert pipeline.local_cidrs == (ip_network("10.244.1.0/24"), ip_network("fd00:10:244:1::/64"))
    assert pipeline.pod_cidrs == CLUSTER.pod_cidrs
    assert pipeline.service_cidrs == CLUSTER.service_cidrs
    route = route_intent(state, "n1")
    assert route.id == "all/route/n1"
    assert route.cidrs == pipeline.local_cidrs
    assert route.encapsulation == "auto"
    assert findings(state) == []


def test_a_node_without_its_switch_is_waited_for() -> None:
    """No intent; a ready node says what is missing, one that is not ready is nobody's fault."""
    state = state_of(node("n1"), node("n2", 2, ready=False))
    assert intents(state) == {}
    (finding,) = findings(state)
    assert (finding.object, finding.severity) == ("Node n1", "waiting")
    assert waiting_nodes(state) == ["n1"]
    step(state, [Upserted(switch("n1"))])
    assert waiting_nodes(state) == []


def test_a_switch_without_its_node_is_left_alone() -> None:
    """A deleted Node withdraws both intents."""
    state = state_of(node("n1"), switch("n1"))
    changes = step(state, [Deleted("node", "", "n1")])
    assert set(changes.intents.values()) == {None}
    assert len(changes.intents) == 2


def test_blocks_go_before_pod_cidrs_in_their_family() -> None:
    """IPv4 from ipam's blocks, IPv6 from spec.podCIDRs, where only IPv4 has blocks."""
    facts = [
        block("10.244.7.0/26", "n1"),
        block("10.244.1.0/24", "n1"),
        block("10.244.9.0/24", "x"),
    ]
    state = state_of(node("n1"), switch("n1"), *facts)
    cidrs = [str(cidr) for cidr in route_intent(state, "n1").cidrs]
    assert cidrs == ["10.244.1.0/24", "10.244.7.0/26", "fd00:10:244:1::/64"]


def test_a_gateway_without_its_block_holds_the_node_back() -> None:
    """Half of its CIDRs would cut off the other half: rather none until the block is known."""
    state = state_of(
        node("n1", pod_cidrs=()), switch("n1", gateway_ips=(ip_address("10.244.5.1"),))
    )
    assert intents(state) == {}
    assert waiting_nodes(state) == ["n1"]
    step(state, [Upserted(block("10.244.5.0/24", "n1"))])
    assert waiting_nodes(state) == []
    assert route_intent(state, "n1").cidrs == (ip_network("10.244.5.0/24"),)


def test_two_nodes_with_one_pod_cidr() -> None:
    """By name, unless the ledger says whose it is; the other is told and keeps what is its own."""
    both = {"pod_cidrs": (ip_network("10.244.1.0/24"),)}
    state = state_of(
        node("a", 1, **both),
        node("b", 2, **both),
        switch("a", gateway_ips=()),
        switch("b", gateway_ips=()),
    )
    assert route_intent(state, "a").cidrs == both["pod_cidrs"]
    assert route_intent(state, "b").cidrs == ()
    (finding,) = findings(state)
    assert (finding.object, finding.severity) == ("Node b", "conflict")
    step(state, [Upserted(block("10.244.1.0/24", "b"))])
    assert route_intent(state, "a").cidrs == ()
    assert route_intent(state, "b").cidrs == both["pod_cidrs"]
    assert [f.object for f in findings(state)] == ["Node a"]


def test_two_switches_with_one_dpid() -> None:
    """Flowctl knows switches by it: the second is left alone, by name, until the first is gone."""
    state = state_of(node("a", 1), node("b", 2), switch("a", 1, dpid=7), switch("b", 2, dpid=7))
    assert {i.scope for i in intents(state).values() if isinstance(i, SwitchIntent)} == {"a"}
    (finding,) = findings(state)
    assert (finding.object, finding.field) == ("Node b", "switch.dpid")
    step(state, [Deleted("switch", "", "a")])
    assert {i.scope for i in intents(state).values() if isinstance(i, SwitchIntent)} == {"b"}


def test_internal_ips_go_first() -> None:
    """Tunnels end at a node's first address: its InternalIP, not whatever else its uplink has."""
    addresses = tuple(
        NodeAddress(ip=ip_address(ip), subnet=ip_network("192.0.2.0/24"))
        for ip in ("192.0.2.200", "192.0.2.1", "192.0.2.100")
    )
    state = state_of(node("n1"), switch("n1", addresses=addresses))
    found = [str(a.ip) for a in route_intent(state, "n1").addresses]
    assert found == ["192.0.2.1", "192.0.2.200", "192.0.2.100"]


def test_service_cidr_objects_replace_the_setting() -> None:
    """Every switch follows when they come and go."""
    state = state_of(node("n1"), switch("n1"))
    fact = ServiceCIDRFact(name="kubernetes", cidrs=(ip_network("10.1.0.0/16"),))
    changes = step(state, [Upserted(fact)])
    assert len(changes.intents) == 1
    assert switch_intent(state, "n1").service_cidrs == fact.cidrs
    step(state, [Deleted("servicecidr", "", "kubernetes")])
    assert switch_intent(state, "n1").service_cidrs == CLUSTER.service_cidrs


@pytest.mark.parametrize(
    ("asked", "written", "complaints"),
    [("auto", "auto", 0), ("none", "none", 0), ("geneve", "tunnel", 0), ("vxlan", "tunnel", 1)],
)
def test_encapsulation(
    asked: Literal["auto", "none", "geneve", "vxlan"], written: str, complaints: int
) -> None:
    """The setting is in every route; a switch with another tunnel type is named."""
    state = State(replace(CLUSTER, encapsulation=asked))
    step(state, [Upserted(node("n1")), Upserted(switch("n1"))])
    assert route_intent(state, "n1").encapsulation == written
    assert len(findings(state)) == complaints


def test_pod_cidr_outside_the_pools_is_named() -> None:
    """It works, but other nodes would take its Pods for the world outside."""
    odd = node("n1", pod_cidrs=(ip_network("10.99.0.0/24"),))
    state = state_of(odd, switch("n1", gateway_ips=()))
    (finding,) = findings(state)
    assert (finding.field, finding.severity) == ("spec.podCIDRs", "invalid")
    assert route_intent(state, "n1").cidrs == odd.pod_cidrs


def test_bad_network_policies_are_loud() -> None:
    """A policy that cannot be read is named, and no longer once it is gone."""
    spec = msgspec.Raw(b'{"podSelector": {}, "egress": [{"to": 1}]}')
    state = state_of(NetworkPolicyFact(namespace="shop", name="deny", spec=spec))
    (finding,) = findings(state)
    assert (finding.object, finding.severity) == ("NetworkPolicy shop/deny", "invalid")
    assert finding.field == "spec.egress[0].to"
    step(state, [Deleted("networkpolicy", "shop", "deny")])
    assert findings(state) == []


def test_facts_of_no_concern_change_nothing() -> None:
    """A Pod without interface leads to nothing; the sync fact only opens the gate."""
    state = state_of(PodFact(namespace="default", name="p"), SyncFact(name="watcher"))
    assert state.synced
    assert intents(state) == {}
    step(state, [Deleted("sync", "", "watcher"), Deleted("pod", "default", "p")])
    assert not state.synced


@pytest.mark.parametrize(
    ("version", "fragments", "sctp", "null_nat"),
    [
        ("3.0.9", False, False, False),
        ("3.1.0", False, False, False),
        ("3.1.2", False, False, False),
        ("3.1.3", False, False, True),
        ("3.1.7", True, False, True),
        ("3.2.2", False, True, False),
        ("3.2.4", False, True, True),
        ("3.3.0", False, True, True),
        ("3.3.4", True, True, True),
        ("3.4.1", False, True, True),
        ("3.5.0", True, True, True),
        ("4.0", True, True, True),
        ("unknown", False, False, False),
        ("3", False, False, False),
        ("3.x.9", False, False, False),
        ("", False, False, False),
    ],
)
def test_what_an_open_vswitch_can_do(
    version: str, fragments: bool, sctp: bool, null_nat: bool
) -> None:
    """By release branch and patch; what cannot be read can nothing."""
    assert tracks_fragments(version) == fragments
    assert tracks_sctp(version) == sctp
    assert survives_null_nat(version) == null_nat


def test_a_switch_that_loses_fragments_is_named() -> None:
    """Its version is a finding of the node, which is planned for all the same."""
    state = State(CLUSTER)
    step(state, [Upserted(node("a", 1)), Upserted(switch("a", 1, ovs_version="3.1.3"))])
    (finding,) = findings(state)
    assert (finding.object, finding.field) == ("Node a", "switch.ovs_version")
    assert [i for i in intents(state).values() if i.scope == "a"]
    step(state, [Upserted(switch("a", 1, ovs_version="3.1.7"))])
    assert findings(state) == []


def test_a_switch_that_mixes_up_replies_is_named() -> None:
    """It is told not to use nat(src) too, which would be its end (ADR 0044)."""
    state = State(CLUSTER)
    for version, named in (("3.1.2", True), ("3.1.7", False), ("3.2.2", True), ("3.5.0", False)):
        step(state, [Upserted(node("a", 1)), Upserted(switch("a", 1, ovs_version=version))])
        fields = [finding.field for finding in findings(state)]
        assert ("switch.null_nat" in fields) == named
        (pipeline,) = (i for i in intents(state).values() if isinstance(i, SwitchIntent))
        assert pipeline.null_nat != named
