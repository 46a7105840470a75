"""
kube-proxy's choice of endpoints, written down a second time as naively as can be, against flows.

The oracle knows neither sets of endpoints nor priorities: it asks, for one node, one client and one
address, who may answer. Source: CategorizeEndpoints and topologyModeFromHints in kube-proxy's
pkg/proxy/topology.go, and what its iptables mode does with a policy Local without endpoints.
"""

from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dunlin.events.facts import Endpoint, LoadBalancerIngress, ServicePort
from tests.packets.world import (
    CLIENT,
    CLIENT6,
    DROP,
    REJECT,
    World,
    at,
    end_of,
    endpoints,
    first_packet,
    pod_ip,
    service,
)

NODE, ZONE = "n1", "za"
ADDRESSES = {
    4: {"cluster": "10.96.0.10", "node": "192.0.2.1", "vip": "198.51.100.8"},
    6: {"cluster": "fd00:10:96::10", "node": "2001:db8::1", "vip": "2001:db8:5::8"},
}
PORTS = {"cluster": 80, "node": 30080, "vip": 80}
STATES = ("ready", "serving", "terminating", "unready")


@dataclass(frozen=True)
class Case:
    """A Service as kube-proxy on n1 sees it."""

    known: tuple[Endpoint, ...]
    external: bool
    external_local: bool
    internal_local: bool
    affinity: bool
    version: int
    policies: bool
    found: dict[str, bool] = field(default_factory=dict, compare=False)

    def facts(self) -> tuple[Any, ...]:
        """What the planner reads."""
        more: dict[str, Any] = {}
        if self.external:
            vip = ip_address(ADDRESSES[self.version]["vip"])
            more["load_balancer_ingress"] = (LoadBalancerIngress(ip=vip),)
        else:
            more["ports"] = (ServicePort(name="http", port=80),)
        web = service(
            ADDRESSES[self.version]["cluster"],
            external_policy_local=self.external_local and self.external,
            internal_policy_local=self.internal_local,
            affinity_timeout_s=600 if self.affinity else 0,
            **more,
        )
        return web, endpoints(*self.known)


def hinted(known: tuple[Endpoint, ...], hints: str, name: str) -> bool:
    """Every ready endpoint has such a hint, and one of them names this."""
    lists = [getattr(e, hints) for e in known if e.ready]
    return all(lists) and any(name in one for one in lists)


def cluster_wide(known: tuple[Endpoint, ...]) -> set[str]:
    """Who answers under the policy Cluster, on n1."""
    ready = [e for e in known if e.ready]
    if hinted(known, "hint_nodes", NODE):
        ready = [e for e in ready if NODE in e.hint_nodes]
    elif hinted(known, "hint_zones", ZONE):
        ready = [e for e in ready if ZONE in e.hint_zones]
    return {str(e.ip) for e in ready or [e for e in known if e.serving and e.terminating]}


def on_this_node(known: tuple[Endpoint, ...]) -> set[str]:
    """Who answers under the policy Local, on n1."""
    here = [e for e in known if e.node == NODE]
    ready = [e for e in here if e.ready]
    return {str(e.ip) for e in ready or [e for e in here if e.serving and e.terminating]}


def oracle(case: Case, client: str, address: str) -> set[str] | str:
    """Addresses of those who may answer, DROP or REJECT."""
    if not any(e.ready or (e.serving and e.terminating) for e in case.known):
        return REJECT
    from_outside = client == "outside"
    local = case.internal_local if address == "cluster" else case.external_local and from_outside
    return (on_this_node(case.known) or DROP) if local else cluster_wide(case.known)


def translated(client: str, endpoint: str, version: int) -> bool:
    """Source NAT only where the answer would not come back through this node, or to itself."""
    if client == "p11":
        return endpoint == pod_ip(1, 1, version)
    return client == "outside" and endpoint not in {pod_ip(1, pod, version) for pod in (1, 2)}


def seen(world: World, client: str, address: str, version: int) -> dict[str, bool] | str:
    """Endpoint address -> was the source translated; or DROP or REJECT."""
    source = (CLIENT if version == 4 else CLIENT6) if client == "outside" else client
    sent = first_packet(source, ADDRESSES[version][address], PORTS[address])
    found = {end_of(trace, sent) for trace in world.tracer.trace_all(sent)}
    words = {end for end in found if isinstance(end, str)}
    if words:
        (word,) = words
        assert found == words, found
        return word
    return {e[0].rpartition(":")[0].strip("[]"): e[1] for e in found if isinstance(e, tuple)}


def differences(case: Case, ask: Any = oracle) -> list[str]:
    """Every client and address where the flows and the oracle disagree."""
    world = World.of(*case.facts(), generation=7 if case.policies else 0)
    wrong = []
    for address in ("cluster", "node", "vip") if case.external else ("cluster",):
        for client in ("p11", "node", "outside"):
            if client == "outside" and address == "cluster":
                continue  # Kubernetes does not say who may call a cluster IP from outside.
            want = ask(case, client, address)
            got = seen(world, client, address, case.version)
            if isinstance(want, set):
                want = {e: translated(client, e, case.version) for e in want}
            if want != got:
                wrong.append(f"{client} -> {address}: wanted {want}, got {got}")
    return wrong


def some_endpoint(version: int) -> st.SearchStrategy[Endpoint]:
    """A Pod of n1 … n3 in some state, with or without hints."""
    return st.builds(
        lambda number, pod, state, zones, nodes: at(
            number, pod, state, version, hint_zones=zones, hint_nodes=nodes
        ),
        st.sampled_from((1, 2, 3)),
        st.sampled_from((1, 2)),
        st.sampled_from(STATES),
        st.sampled_from([("za",), ("za",), ("zb",), ("za", "zb"), ()]),
        st.sampled_from([(), (), ("n1",), ("n2",), ("n1", "n3")]),
    )


def some_case(version: int) -> st.SearchStrategy[Case]:
    """Up to five endpoints, no address twice."""
    known = st.lists(some_endpoint(version), max_size=5, unique_by=lambda e: e.ip)
    return st.builds(
        Case,
        known.map(tuple),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.booleans(),
        st.just(version),
        st.booleans(),
    )


@settings(max_examples=150)
@given(st.sampled_from((4, 6)).flatmap(some_case))
def test_flows_do_as_kube_proxy(case: Case) -> None:
    """Any states, hints, policies and family: the same endpoints, refusals and translations."""
    assert not differences(case)


def without_terminating(case: Case, client: str, address: str) -> set[str] | str:
    """An oracle that has forgotten the terminating fall-back."""
    known = tuple(e for e in case.known if not e.terminating)
    return oracle(Case(known, *_rest(case)), client, address)


def without_hints(case: Case, client: str, address: str) -> set[str] | str:
    """… that has forgotten topology."""
    bare = tuple(Endpoint(ip=e.ip, ready=e.ready, node=e.node) for e in case.known)
    return oracle(Case(bare, *_rest(case)), client, address)


def always_cluster(case: Case, client: str, address: str) -> set[str] | str:
    """… that has forgotten policies Local."""
    _, external, _, _, *rest = (case.known, *_rest(case))
    return oracle(Case(case.known, external, False, False, *rest), client, address)


def _rest(case: Case) -> tuple[Any, ...]:
    return (
        case.external, case.external_local, case.internal_local, case.affinity, case.version,
        case.policies,
    )  # fmt: skip


MIXED = Case(
    (
        at(1, 1, "serving", hint_zones=("za",)),
        at(2, 1, hint_zones=("za",)),
        at(3, 1, hint_zones=("zb",)),
    ),
    True, True, True, False, 4, False,
)  # fmt: skip


@pytest.mark.parametrize("ask", [without_terminating, without_hints, always_cluster])
def test_the_oracle_can_fail(ask: Any) -> None:
    """Each rule that it forgets is noticed in one case where the whole oracle agrees."""
    assert not differences(MIXED)
    assert differences(MIXED, ask)
