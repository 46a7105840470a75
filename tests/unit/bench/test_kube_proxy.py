"""Rules as kube-proxy writes them: their shape, and that every address leads to every endpoint."""

import re

import pytest

from bench.kube_proxy import LARGE, TRANSACTION, Port, iptables, nftables
from bench.services import (
    ENDPOINTS,
    FIRST_IP,
    IPTABLES,
    NFTABLES,
    PORTS,
    kernel_rules,
    our_program,
)
from dunlin.openflow.flow import Ct
from dunlin.pipeline.layout import Table

PODS, SERVICES = "10.244.0.0/16", "10.96.0.0/12"


def ports(count: int, endpoints: int = 3) -> list[Port]:
    """So many Services of one port."""
    ips = [f"10.244.1.{number}" for number in range(1, endpoints + 1)]
    return [
        Port(f"default/s{number}", "http", "tcp", f"10.96.1.{number}", 80, ips, 8080)
        for number in range(1, count + 1)
    ]


def test_iptables_lead_from_the_address_to_each_endpoint() -> None:
    """KUBE-SERVICES -> KUBE-SVC -> KUBE-SEP -> DNAT, with the chances that make equal shares."""
    text = iptables(ports(2), PODS)
    frontends = re.findall(r"-A KUBE-SERVICES .*-d (\S+)/32 .* -j (KUBE-SVC-\w{16})", text)
    assert [address for address, _ in frontends] == ["10.96.1.1", "10.96.1.2"]
    for _, chain in frontends:
        jumps = re.findall(rf"-A {chain} .*?(?:probability (\S+) )?-j (KUBE-SEP-\w{{16}})", text)
        assert [float(chance) if chance else 1.0 for chance, _ in jumps] == [
            pytest.approx(1 / 3), 0.5, 1.0,
        ]  # fmt: skip
        ends = [re.findall(rf"-A {end} .*--to-destination (\S+)", text) for _, end in jumps]
        assert ends == [["10.244.1.1:8080"], ["10.244.1.2:8080"], ["10.244.1.3:8080"]]
    assert text.rindex("KUBE-NODEPORTS") > text.rindex("-j KUBE-SVC-"), "that rule is the last one"


def test_comments_are_left_out_of_large_clusters() -> None:
    """As kube-proxy does above 1,000 endpoints."""
    assert "--comment" in iptables(ports(2), PODS)
    assert "--comment" not in iptables(ports(2, LARGE), PODS)


def test_nftables_lead_from_the_address_to_each_endpoint() -> None:
    """The map of Services -> a chain -> one of its endpoints' chains -> DNAT."""
    text = "".join(nftables(ports(2), PODS, SERVICES))
    elements = re.findall(r"(10\.96\.1\.\d) \. tcp \. 80 : goto (\S+?),?\n", text)
    assert [address for address, _ in elements] == ["10.96.1.1", "10.96.1.2"]
    for _, name in elements:
        body = re.search(rf"chain {re.escape(name)} {{\n(.*?)\n  }}", text, re.DOTALL)
        assert body is not None
        ends = re.findall(r"\d : goto ([^\s,]+)", body[1])
        assert len(ends) == 3
        assert "numgen random mod 3" in body[1]
        for end in ends:
            target = end.rpartition("__")[2].replace("/", ":")
            assert f"dnat to {target}" in text.split(f"chain {end} {{")[1].split("}")[0]


def test_nftables_come_in_transactions() -> None:
    """A frame, and then so many ServicePorts at once."""
    assert len(list(nftables(ports(3), PODS, SERVICES))) == 2
    many = [*ports(200), *ports(200), *ports(200)]
    assert len(list(nftables(many, PODS, SERVICES))) == 1 + -(-600 // TRANSACTION)


def test_every_way_has_the_same_services() -> None:
    """Each address and port, with as many endpoints, in both kernels' rules and in our flows."""
    ips = [f"10.202.2.{number}" for number in range(2, 2 + ENDPOINTS)]
    program = our_program(3, ips)
    wanted = {str(FIRST_IP + number) for number in range(3)}
    for mode in (IPTABLES, NFTABLES):
        assert wanted <= set(re.findall(r"10\.96\.64\.\d+", "".join(kernel_rules(mode, 3, ips))))
    ours = [flow for flow in program.flows if flow.table == Table.SERVICE_LB]
    assert len(ours) == 2 + len(PORTS)
    sizes = sorted(
        len({a.nat for bucket in g.buckets for a in bucket.actions if isinstance(a, Ct)})
        for g in program.groups
    )
    assert sizes == [1, *[ENDPOINTS] * (1 + len(PORTS))]
