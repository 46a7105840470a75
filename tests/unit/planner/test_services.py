"""Which intents Services and EndpointSlices lead to."""

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from dunlin.events.facts import (
    EndpointPort,
    EndpointSliceFact,
    LoadBalancerIngress,
    Protocol,
    ServicePort,
    ServiceType,
)
from dunlin.events.intents import LocalServiceIntent, ServicePortIntent
from dunlin_planner.core.events import Deleted, Upserted
from dunlin_planner.core.step import Changes, findings, intents, step
from dunlin_planner.state import State
from tests.unit.planner.build import CLUSTER, endpoint, service, slice_of, switch


def planned(*facts: Any) -> list[ServicePortIntent]:
    """The Service intents of these facts, by key."""
    state = State(CLUSTER)
    step(state, [Upserted(fact) for fact in facts])
    found = [i for i in intents(state).values() if isinstance(i, ServicePortIntent)]
    return sorted(found, key=lambda intent: intent.key)


def ends(intent: ServicePortIntent) -> list[str]:
    """The endpoints as `ip:port`."""
    return [f"{e.ip}:{e.port}" for e in intent.endpoints]


def test_one_service_port_gives_one_intent() -> None:
    """Key, object, address, target port and endpoints come from Service and EndpointSlice."""
    web = endpoint("10.244.1.5", target="default/web-1")
    (intent,) = planned(service(), slice_of("web", web))
    assert intent.id == "all/service/default/web:http/TCP"
    assert intent.object == "service/default/web"
    assert intent.port == 80
    assert [str(a.ip) for a in intent.addresses] == ["10.96.0.10"]
    assert ends(intent) == ["10.244.1.5:8080"]
    assert intent.endpoints[0].target == "default/web-1"


def test_endpoints_are_sorted_by_number_not_by_text() -> None:
    """10.244.1.10 stands after 10.244.1.9, whatever the order in the slice."""
    found = slice_of("web", endpoint("10.244.1.10"), endpoint("10.244.1.9"))
    (intent,) = planned(service(), found)
    assert ends(intent) == ["10.244.1.9:8080", "10.244.1.10:8080"]


def test_several_slices_are_merged_and_deduplicated() -> None:
    """An endpoint that two slices list while it moves counts once, and as ready if one says so."""
    one = slice_of("web", endpoint("10.244.1.5", "unready"), endpoint("10.244.1.6"), name="web-1")
    two = slice_of("web", endpoint("10.244.1.5"), endpoint("10.244.1.7"), name="web-2")
    (intent,) = planned(service(), one, two)
    assert ends(intent) == ["10.244.1.5:8080", "10.244.1.6:8080", "10.244.1.7:8080"]


def test_named_target_port_may_differ_between_slices() -> None:
    """A named target port resolves per Pod: slices with different numbers serve one ServicePort."""
    one = slice_of("web", endpoint("10.244.1.5"), name="web-1", port=8080)
    two = slice_of("web", endpoint("10.244.1.6"), name="web-2", port=9090)
    (intent,) = planned(service(), one, two)
    assert ends(intent) == ["10.244.1.5:8080", "10.244.1.6:9090"]


def test_ports_are_matched_by_name_and_protocol() -> None:
    """One number on TCP and UDP, as DNS has: neither gets the other's endpoints."""
    dns = service(
        "dns",
        ports=(
            ServicePort(name="dns", protocol=Protocol.UDP, port=53),
            ServicePort(name="dns-tcp", protocol=Protocol.TCP, port=53),
            ServicePort(name="metrics", protocol=Protocol.TCP, port=9153),
        ),
    )
    found = EndpointSliceFact(
        namespace="default",
        name="dns-1",
        service="dns",
        ports=(
            EndpointPort(name="dns", protocol=Protocol.UDP, port=5353),
            EndpointPort(name="dns-tcp", protocol=Protocol.TCP, port=5300),
            EndpointPort(name="metrics", protocol=Protocol.UDP, port=1),
        ),
        endpoints=(endpoint("10.244.1.2"),),
    )
    by_key = {intent.key: ends(intent) for intent in planned(dns, found)}
    assert by_key == {
        "default/dns:dns/UDP": ["10.244.1.2:5353"],
        "default/dns:dns-tcp/TCP": ["10.244.1.2:5300"],
        "default/dns:metrics/TCP": [],
    }


def test_terminating_endpoints_serve_when_none_is_ready() -> None:
    """kube-proxy's fall-back: serving and terminating ones, never those that do not serve."""
    pool = [endpoint("10.244.1.1", "serving"), endpoint("10.244.1.2", "terminating")]
    (intent,) = planned(service(), slice_of("web", *pool, endpoint("10.244.1.3", "unready")))
    assert ends(intent) == ["10.244.1.1:8080"]
    (intent,) = planned(service(), slice_of("web", *pool, endpoint("10.244.1.4")))
    assert ends(intent) == ["10.244.1.4:8080"]


def test_families_are_served_apart() -> None:
    """IPv6 falls back to its terminating endpoint although IPv4 has a ready one."""
    v4 = slice_of("web", endpoint("10.244.1.1"), name="web-4")
    v6 = slice_of("web", endpoint("fd00:10:244:1::1", "serving"), name="web-6")
    (intent,) = planned(service("web", "10.96.0.10", "fd00:10:96::a"), v4, v6)
    assert ends(intent) == ["10.244.1.1:8080", "fd00:10:244:1::1:8080"]
    first, second = intent.addresses
    assert first.group_id != second.group_id
    assert first.group_id & 0xFF == second.group_id & 0xFF == 0


def test_endpoints_of_a_family_without_address_are_left_out() -> None:
    """A single-stack Service does not carry endpoints that nothing can reach through it."""
    found = slice_of("web", endpoint("10.244.1.1"), endpoint("fd00:10:244:1::1"))
    (intent,) = planned(service(), found)
    assert ends(intent) == ["10.244.1.1:8080"]


def test_service_without_endpoints_still_has_its_intent() -> None:
    """It must refuse, not fall through."""
    (intent,) = planned(service())
    assert intent.endpoints == ()


def test_service_without_selector_needs_only_slices() -> None:
    """Endpoints beyond the cluster's Pods are endpoints like any other."""
    (intent,) = planned(service("ext"), slice_of("ext", endpoint("198.51.100.7"), name="mine"))
    assert ends(intent) == ["198.51.100.7:8080"]


@pytest.mark.parametrize(
    "changes",
    [
        {"cluster_ips": ()},
        {"type": ServiceType.EXTERNAL_NAME},
        {"proxy_name": "another-proxy"},
        {"headless_label": True},
    ],
)
def test_services_that_are_not_proxied_give_nothing(changes: dict[str, Any]) -> None:
    """Headless, ExternalName, and those left to another proxy: no intent and no finding."""
    state = State(CLUSTER)
    step(state, [Upserted(service(**changes)), Upserted(slice_of("web", endpoint("10.244.1.1")))])
    assert intents(state) == {}
    assert findings(state) == []


def test_many_endpoints() -> None:
    """5,000 endpoints in 50 slices are one intent."""
    facts = [
        slice_of("web", *(endpoint(f"10.244.{n}.{m}") for m in range(1, 101)), name=f"web-{n}")
        for n in range(50)
    ]
    (intent,) = planned(service(), *facts)
    assert len(intent.endpoints) == 5000


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (
            {"affinity_timeout_s": 86400},
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        ),
        ({"traffic_distribution": "Unheard"}, "spec.trafficDistribution"),
    ],
)
def test_unsupported_fields_are_loud(changes: dict[str, Any], field: str) -> None:
    """The finding names object and field; the cluster IP works all the same."""
    state = State(CLUSTER)
    changed = step(state, [Upserted(service(**changes))])
    (finding,) = findings(state)
    assert changed.findings == (finding,)
    assert (finding.object, finding.field) == ("Service default/web", field)
    assert finding.severity == "unsupported"
    assert len(intents(state)) == 1
    again = step(state, [Upserted(service("web", "10.96.0.11", **changes))])
    assert again.findings == (), "a finding is told once, not at each change of its object"


def test_sctp_is_unsupported_only_on_old_switches() -> None:
    """The finding names the nodes, and goes when the last of them is newer."""
    state = State(CLUSTER)
    sctp = service(ports=(ServicePort(port=80, protocol=Protocol.SCTP),))
    step(state, [Upserted(sctp), Upserted(switch("n1", ovs_version="3.3.1"))])
    assert findings(state) == []
    step(state, [Upserted(switch("n2", 2, ovs_version="3.1.0"))])
    (finding,) = [f for f in findings(state) if f.kind == "Service"]
    assert finding.field == "spec.ports.protocol"
    assert "n2" in finding.reason
    step(state, [Deleted("switch", "", "n2")])
    assert findings(state) == []


def vip(ip: str, mode: Any = "VIP") -> LoadBalancerIngress:
    """An ingress point of a load balancer."""
    return LoadBalancerIngress(ip=ip_address(ip), ip_mode=mode)


def test_external_addresses_and_node_port() -> None:
    """External IPs and VIPs of families with a cluster IP; source ranges for VIPs."""
    (intent,) = planned(
        service(
            ports=(ServicePort(name="http", port=80, node_port=30080),),
            external_ips=(ip_address("192.0.2.7"),),
            load_balancer_ingress=(vip("192.0.2.8"), vip("192.0.2.9", "Proxy"), vip("2001:db8::8")),
            load_balancer_source_ranges=(ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16")),
        )
    )
    assert intent.node_port == 30080
    assert {str(e.ip): [str(s) for s in e.sources] for e in intent.external} == {
        "192.0.2.7": [],
        "192.0.2.8": ["10.0.0.0/8"],
    }


def test_ranges_of_the_other_family_leave_an_address_open() -> None:
    """kube-proxy's rule: each family has its own list, and an empty list guards nothing."""
    (intent,) = planned(
        service(
            load_balancer_ingress=(vip("192.0.2.8"),),
            load_balancer_source_ranges=(ip_network("2001:db8::/32"),),
        )
    )
    assert intent.external[0].sources == ()


def test_a_node_port_belongs_to_one_service() -> None:
    """The smaller name has it; the other keeps its cluster IP and says so."""
    port = (ServicePort(name="http", port=80, node_port=30080),)
    one, two = planned(service("a", ports=port), service("b", "10.96.0.11", ports=port))
    assert (one.node_port, two.node_port) == (30080, 0)


def own(*facts: Any) -> dict[str, LocalServiceIntent]:
    """What nodes have of their own, by node."""
    state = State(CLUSTER)
    step(state, [Upserted(fact) for fact in facts])
    found = intents(state).values()
    return {i.scope: i for i in found if isinstance(i, LocalServiceIntent)}


def test_policy_local_gives_each_node_its_own_endpoints() -> None:
    """Only nodes with endpoints have an intent; terminating ones serve as a last resort."""
    pool = (
        endpoint("10.244.1.1", node="a"),
        endpoint("10.244.1.2", "serving", node="a"),
        endpoint("10.244.2.1", "serving", node="b"),
        endpoint("10.244.3.1", "unready", node="c"),
    )
    facts = (service(internal_policy_local=True), slice_of("web", *pool))
    found = own(*facts)
    ends_of = {n: [str(e.ip) for f in i.families for e in f.local] for n, i in found.items()}
    assert ends_of == {"a": ["10.244.1.1"], "b": ["10.244.2.1"]}
    (shared,) = planned(*facts)
    assert shared.internal_local
    assert ends(shared) == ["10.244.1.1:8080"]
    assert {f.local_group_id for i in found.values() for f in i.families} == {
        shared.families[0].local_group_id
    }


def test_external_policy_local_needs_external_traffic() -> None:
    """A ClusterIP Service with the field set has no use for it."""
    web = slice_of("web", endpoint("10.244.1.1", node="a"))
    assert own(service(external_policy_local=True), web) == {}
    node_port = (ServicePort(name="http", port=80, node_port=30080),)
    assert set(own(service(external_policy_local=True, ports=node_port), web)) == {"a"}


def test_hints_make_zones_and_nodes() -> None:
    """Zones are in the shared intent, nodes have their own; each set has its group."""
    pool = (
        endpoint("10.244.1.1", node="a", hint_zones=("za",), hint_nodes=("a",)),
        endpoint("10.244.2.1", node="b", hint_zones=("zb",), hint_nodes=("b",)),
    )
    facts = (service(), slice_of("web", *pool))
    (shared,) = planned(*facts)
    (family,) = shared.families
    zones = {z.zone: [str(e.ip) for e in z.endpoints] for z in family.zones}
    assert zones == {"za": ["10.244.1.1"], "zb": ["10.244.2.1"]}
    nodes = {n: [str(e.ip) for e in i.families[0].node] for n, i in own(*facts).items()}
    assert nodes == {"a": ["10.244.1.1"], "b": ["10.244.2.1"]}
    groups = {family.group_id, family.node_group_id, *(z.group_id for z in family.zones)}
    assert len(groups) == 4


def test_hints_that_go_take_their_groups_with_them() -> None:
    """A Service without hints has one group a family again, the same as before."""
    state = State(CLUSTER)
    step(state, [Upserted(service()), Upserted(slice_of("web", endpoint("10.244.1.1")))])
    before = dict(state.groups_of)
    hinted = endpoint("10.244.1.1", hint_zones=("za",))
    step(state, [Upserted(slice_of("web", hinted))])
    assert dict(state.groups_of) != before
    step(state, [Upserted(slice_of("web", endpoint("10.244.1.1")))])
    assert dict(state.groups_of) == before


def test_two_services_on_one_address_do_not_share_it() -> None:
    """The smaller name has it, whoever came first; the other says so, and gets it when free."""
    state = State(CLUSTER)
    step(state, [Upserted(service("b"))])
    step(state, [Upserted(service("a"))])
    assert [i.key for i in intents(state).values()] == ["default/a:http/TCP"]
    (finding,) = findings(state)
    assert finding.object == "Service default/b"
    assert "default/a" in finding.reason
    step(state, [Deleted("service", "default", "a")])
    assert [i.key for i in intents(state).values()] == ["default/b:http/TCP"]
    assert findings(state) == []


def test_slice_that_changes_its_service_leaves_the_old_one() -> None:
    """The label service-name is mutable: both Services change."""
    state = State(CLUSTER)
    step(state, [Upserted(service("a", "10.96.0.1")), Upserted(service("b", "10.96.0.2"))])
    step(state, [Upserted(slice_of("a", endpoint("10.244.1.1"), name="s"))])
    step(state, [Upserted(slice_of("b", endpoint("10.244.1.1"), name="s"))])
    by_name = {i.key: i for i in intents(state).values()}
    assert by_name["default/a:http/TCP"].endpoints == ()  # type: ignore[union-attr]
    assert len(by_name["default/b:http/TCP"].endpoints) == 1  # type: ignore[union-attr]


def test_only_what_changed_is_returned() -> None:
    """A change of one slice of one Service is one intent; the same again is none."""
    state = State(CLUSTER)
    services = [Upserted(service(f"s{n}", f"10.96.1.{n}")) for n in range(1, 50)]
    step(state, services)
    event = Upserted(slice_of("s7", endpoint("10.244.1.1"), name="x", trigger_ms=17))
    changes = step(state, [event])
    (intent,) = changes.intents.values()
    assert intent is not None
    assert intent.key == "default/s7:http/TCP"
    assert intent.trigger_ms == 17
    assert step(state, [event]) == Changes()


def test_trigger_is_that_of_the_change_not_of_an_old_slice() -> None:
    """The oldest new trigger of the batch counts; slices that did not change have no say."""
    state = State(CLUSTER)
    old = slice_of("web", endpoint("10.244.1.1"), name="web-1", trigger_ms=1)
    step(state, [Upserted(service()), Upserted(old)])
    two = slice_of("web", endpoint("10.244.1.2"), name="web-2", trigger_ms=50)
    three = slice_of("web", endpoint("10.244.1.3"), name="web-3", trigger_ms=40)
    (intent,) = step(state, [Upserted(two), Upserted(three), Upserted(old)]).intents.values()
    assert intent is not None
    assert intent.trigger_ms == 40
    (intent,) = step(state, [Upserted(service("web", "10.96.0.99"))]).intents.values()
    assert intent is not None
    assert intent.trigger_ms is None


def test_a_deleted_service_is_withdrawn() -> None:
    """Every ServicePort of it; its slices alone are nothing."""
    state = State(CLUSTER)
    step(state, [Upserted(service()), Upserted(slice_of("web", endpoint("10.244.1.1")))])
    changes = step(state, [Deleted("service", "default", "web")])
    assert list(changes.intents.values()) == [None]
    assert next(iter(changes.intents)).endswith("service.default%2Fweb:http%2FTCP")
    assert state.planned == {}
