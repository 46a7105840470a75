"""Whatever the history of facts, the intents are those of their newest state."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunlin.events.facts import (
    AttachmentFact,
    ContainerPort,
    NetworkPolicyFact,
    PodFact,
    Protocol,
    ServiceCIDRFact,
    ServicePort,
    ServiceType,
)
from dunlin.model.addresses import MacAddress
from dunlin_planner.core.events import Deleted, Event, Owned, Unit, Upserted
from dunlin_planner.core.groups import GroupIds
from dunlin_planner.core.step import findings, intents, step, units_by_shard
from dunlin_planner.state import ALL_SHARDS, Name, State
from tests.unit.planner.build import CLUSTER, block, endpoint, node, service, slice_of, switch

SLOTS = 40
"""So few group ids that Services collide in nearly every example."""

NAMES = ("a", "b", "c")
IPS = ("10.96.0.1", "10.96.0.2", "fd00:10:96::1")

ports = st.lists(
    st.builds(
        ServicePort,
        name=st.sampled_from(["", "http"]),
        protocol=st.sampled_from([Protocol.TCP, Protocol.UDP]),
        port=st.sampled_from([80, 81]),
        node_port=st.sampled_from([0, 0, 8080]),
    ),
    max_size=2,
).map(tuple)
services = st.builds(
    lambda name, ips, found, kind: service(
        name, ports=found, type=kind, cluster_ips=tuple(map(ip_address, ips))
    ),
    st.sampled_from(NAMES),
    st.lists(st.sampled_from(IPS), max_size=2),
    ports,
    st.sampled_from([ServiceType.CLUSTER_IP, ServiceType.EXTERNAL_NAME]),
)
endpoints = st.lists(
    st.builds(
        endpoint,
        st.sampled_from(["10.244.1.1", "10.244.1.2", "fd00:10:244:1::1"]),
        st.sampled_from(["ready", "serving", "unready"]),
    ),
    max_size=3,
)
slices = st.builds(
    lambda owner, found, name, port_name: slice_of(owner, *found, name=name, port_name=port_name),
    st.sampled_from(NAMES),
    endpoints,
    st.sampled_from(["x", "y"]),
    st.sampled_from(["", "http"]),
)
nodes = st.builds(
    lambda name, cidrs, ready: node(name, pod_cidrs=cidrs, ready=ready),
    st.sampled_from(NAMES),
    st.sampled_from([(), (ip_network("10.244.1.0/24"),), (ip_network("10.244.2.0/24"),)]),
    st.booleans(),
)
switches = st.builds(
    lambda name, dpid, gateways: switch(name, dpid=dpid, gateway_ips=gateways),
    st.sampled_from(NAMES),
    st.sampled_from([1, 2]),
    st.sampled_from([(), (ip_address("10.244.1.1"),)]),
)
blocks = st.builds(
    block, st.sampled_from(["10.244.1.0/24", "10.244.2.0/24"]), st.sampled_from(NAMES)
)
others = st.sampled_from(
    [
        NetworkPolicyFact(namespace="default", name="p"),
        ServiceCIDRFact(name="k", cidrs=(ip_network("10.0.0.0/16"),)),
    ]
)
host_ports = st.lists(
    st.builds(
        ContainerPort,
        protocol=st.sampled_from([Protocol.TCP, Protocol.SCTP]),
        port=st.sampled_from([80, 81]),
        host_port=st.sampled_from([0, 8080, 8080, 8081]),
        host_ip=st.sampled_from([None, ip_address("0.0.0.0"), ip_address("192.0.2.1")]),
    ),
    max_size=2,
).map(tuple)
pods = st.builds(
    lambda name, node, ips, found, created_ms, finished: PodFact(
        namespace="default",
        name=name,
        node=node,
        ips=ips,
        ports=found,
        created_ms=created_ms,
        finished=finished,
    ),
    st.sampled_from(NAMES),
    st.sampled_from(["", "a", "a", "b"]),
    st.sampled_from([(), (ip_address("10.244.1.9"), ip_address("fd00:10:244:1::9"))]),
    host_ports,
    st.sampled_from([1, 2]),
    st.sampled_from([False, False, True]),
)
attachments = st.builds(
    lambda name, ip: AttachmentFact(
        namespace="a",
        name=f"{name}/eth0",
        pod_namespace="default",
        pod_name=name,
        container_id=name,
        ips=(ip_address(ip),),
        mac=MacAddress("02:00:00:00:00:09"),
        ofport=9,
        port_name="v",
    ),
    st.sampled_from(NAMES),
    st.sampled_from(["10.244.1.7", "10.244.1.8"]),
)
facts = st.one_of(services, slices, nodes, switches, blocks, others, pods, pods, attachments)


def deletion(fact: Any) -> Deleted:
    """The tombstone of a fact."""
    return Deleted(fact.__struct_config__.tag, fact.namespace, fact.name)


events = facts.flatmap(
    lambda fact: st.sampled_from([Upserted(fact), Upserted(fact), deletion(fact)])
)
histories = st.lists(events, max_size=40)


def newest(history: list[Event]) -> list[Any]:
    """The facts that a history leaves."""
    left: dict[tuple[str, str, str], Any] = {}
    for event in history:
        match event:
            case Upserted(fact):
                gone = deletion(fact)
                left[gone.kind, gone.namespace, gone.name] = fact
            case Deleted(kind, namespace, name):
                left.pop((kind, namespace, name), None)
    return list(left.values())


def new_state(shards: frozenset[int] = ALL_SHARDS) -> State:
    """An empty state with few group ids."""
    return State(CLUSTER, shards=shards, groups=GroupIds(SLOTS))


def recompute(history: list[Event]) -> State:
    """The oracle: a new state that is told only what is left, in the order of names."""
    state = new_state()
    left = sorted(
        newest(history), key=lambda fact: (type(fact).__name__, fact.namespace, fact.name)
    )
    step(state, [Upserted(fact) for fact in left])
    return state


def assert_same(state: State, oracle: State) -> None:
    """Intents, findings and indexes are equal."""
    assert intents(state) == intents(oracle)
    assert findings(state) == findings(oracle)
    assert state.slices_of == oracle.slices_of
    assert state.blocks_of == oracle.blocks_of
    assert _groups(state) == _groups(oracle)
    for index in ("frontends", "dpids", "pod_cidrs"):
        assert getattr(state, index).__dict__ == getattr(oracle, index).__dict__
    assert state.host_ports.__dict__ == oracle.host_ports.__dict__


def _groups(state: State) -> dict[Any, int]:
    return dict(state.groups._slot)


@given(histories, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_incremental_is_recompute(history: list[Event], random: Any) -> None:
    """In batches of any size, with repetitions, the changes add up to the full recompute."""
    state = new_state()
    published: dict[str, Any] = {}
    rest = list(history)
    while rest:
        size = random.randint(1, len(rest))
        batch, rest = rest[:size], rest[size:]
        told = batch + batch[-2:] if random.random() < 0.5 else batch
        published |= step(state, told).intents
    assert_same(state, recompute(history))
    live = {subject for subject, intent in published.items() if intent is not None}
    assert live == set(intents(state)), "what was returned is what stands"
    assert all(published[subject] == intent for subject, intent in intents(state).items())


@given(histories, st.permutations(range(12)))
@settings(max_examples=100, deadline=None)
def test_order_of_objects_does_not_matter(history: list[Event], order: list[int]) -> None:
    """The same newest facts in another order give the same intents."""
    left = newest(history)
    shuffled = [left[i] for i in order if i < len(left)] + left[len(order) :]
    state = new_state()
    for fact in shuffled:
        step(state, [Upserted(fact)])
    assert_same(state, recompute(history))


@given(histories, st.lists(st.frozensets(st.integers(0, 15)), min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_shards_add_up(history: list[Event], owned: list[frozenset[int]]) -> None:
    """Two replicas that divide the shards, and re-divide them meanwhile, plan what one would."""
    one, other = new_state(frozenset()), new_state(frozenset())
    for number, event in enumerate(history):
        shards = owned[number % len(owned)]
        step(one, [Owned(shards), event])
        step(other, [event, Owned(ALL_SHARDS - shards)])
    step(one, [Owned(owned[0])])
    # As the shell does it: shard by shard, all units found once.
    kept = other.shards - owned[0]
    step(other, [Owned(kept)])
    found = units_by_shard(other)
    for shard in sorted(ALL_SHARDS - owned[0] - kept):
        step(other, [Owned(other.shards | {shard}, found.get(shard, frozenset()))])
    oracle = intents(recompute(history))
    assert intents(one).keys() & intents(other).keys() == set()
    assert intents(one) | intents(other) == oracle


@pytest.mark.parametrize("index", ["slices_of", "group", "planned", "host_ports"])
def test_the_oracle_can_fail(index: str) -> None:
    """A planner that loses an index entry, a group or a plan is found out."""
    history: list[Event] = [
        Upserted(service("a", "10.96.0.1")),
        Upserted(service("b", "10.96.0.2")),
        Upserted(slice_of("a", endpoint("10.244.1.1"), name="x")),
        Upserted(
            PodFact(
                namespace="default",
                name="p",
                node="n1",
                ports=(ContainerPort(port=80, host_port=80),),
            )
        ),
    ]
    state = new_state()
    step(state, history)
    match index:
        case "slices_of":
            state.slices_of[Name("default", "a")].clear()
        case "group":
            (key,) = [key for key in state.groups._slot if key.service == "a"]
            state.groups._slot[key] += 1
        case "planned":
            del state.planned[Unit("service", "default", "b")]
        case "host_ports":
            state.host_ports.claims.clear()
    history.append(Upserted(slice_of("a", endpoint("10.244.1.2"), name="y")))
    step(state, history[-1:])
    with pytest.raises(AssertionError):
        assert_same(state, recompute(history))
