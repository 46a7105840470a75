"""What ADD and DEL get from ipam."""

from ipaddress import ip_address

import pytest

from dunlin.events.rpc import Allocated, Blocks, BlocksRequest
from dunlin_ipam.core import requests
from dunlin_ipam.core.requests import Context, Need, Refused
from dunlin_ipam.core.violations import violations
from tests.unit.ipam.build import Ledger, attachment, block, ips, ledger, node, pod, request, switch

DUAL = ("10.244.1.0/24", "fd00:10:244:1::/64")


def refused(answer: object) -> str:
    """The reason of a refusal."""
    assert isinstance(answer, Refused), answer
    return answer.failure.reason


def test_one_address_of_each_family() -> None:
    """The lowest of each block, with the node's gateways; the blocks are claimed on the way."""
    book = ledger(node("n1", *DUAL))
    answer = book.allocate(request())
    assert isinstance(answer, Allocated)
    assert answer.ips == ips("10.244.1.2", "fd00:10:244:1::2")
    assert answer.gateways == ips("10.244.1.1", "fd00:10:244:1::1")
    assert {str(cidr) for cidr in book.state.uses} == set(DUAL)
    line = book.line("10.244.1.2").fact
    assert (line.owner, line.pod_namespace, line.pod_name) == ("c-web/eth0", "default", "web")
    assert violations(book.state) == []


def test_the_same_request_gets_the_same_addresses() -> None:
    """ADD is retried: nothing new is given, nothing is written."""
    book = ledger(node("n1", *DUAL))
    first = book.give(request())
    book.give(request("other"))
    seq = book.seq
    assert book.give(request()) == first
    assert book.seq == seq


def test_different_interfaces_get_different_addresses() -> None:
    """Of one sandbox, too."""
    book = ledger(node("n1", *DUAL))
    found = book.give(request()) + book.give(request(ifname="net1")) + book.give(request("b"))
    assert len(set(found)) == 6


def test_a_whole_block_and_no_more() -> None:
    """A /28 has 13 addresses to give; then the refusal names node and block, and keeps nothing."""
    book = ledger(node("n1", "10.244.1.0/28"))
    given = [book.give(request(f"p{n}"))[0] for n in range(13)]
    assert given == [f"10.244.1.{n}" for n in range(2, 15)]
    reason = refused(book.allocate(request("late")))
    assert "node n1" in reason
    assert "10.244.1.0/28" in reason


def test_exhaustion_of_one_family_gives_the_other_back() -> None:
    """No IPv6 left: an IPv4 address that the failing ADD got before is not kept."""
    book = ledger(node("n1", "10.244.1.0/24"))
    book.give(request("b"))
    book.tell(node("n1", "10.244.1.0/24", "fd00::/126"))
    book.give(request("a"))
    refused(book.allocate(request("b")))
    assert not book.line("10.244.1.2").is_allocated
    assert book.line("10.244.1.3").is_allocated


def test_released_addresses_rest() -> None:
    """
    While others are free they are not given at all.

    When none is, the one released longest ago is.
    """
    book = ledger(node("n1", "10.244.1.0/28"))
    for n in range(13):
        book.give(request(f"p{n}"))
    book.release(request("p5"))
    book.pass_time(1)
    book.release(request("p3"))
    assert "no free address" in refused(book.allocate(request("late")))
    book.pass_time(60_000)
    assert book.give(request("late")) == ["10.244.1.7"]
    assert book.give(request("later")) == ["10.244.1.5"]


def test_fresh_addresses_come_before_rested_ones() -> None:
    """A released address comes again only when the block has no unused one, though it is lower."""
    book = ledger(node("n1", "10.244.1.0/24"))
    book.give(request("a"))
    book.release(request("a"))
    book.pass_time(3_600_000)
    assert book.give(request("b")) == ["10.244.1.3"]


def test_a_large_block_is_reused_before_it_is_used_up() -> None:
    """2^64 addresses do not make a ledger of 2^64 lines."""
    book = ledger(node("n1", "fd00:1::/64"), reuse_window=4)
    for n in range(20):
        book.give(request(f"p{n}"))
        book.release(request(f"p{n}"))
        book.pass_time(60_000)
    assert len(book.state.lines) == 4
    for n in range(6):
        book.give(request(f"q{n}"))
    assert len(book.state.lines) == 6, "what rests or is taken does not stop the next ADD"


def test_what_stands_is_never_given() -> None:
    """Attachments, Pods' status and `in_use` count before the ledger knows of them."""
    book = ledger(
        node("n1", "10.244.1.0/24"), attachment("a", "10.244.1.2"), pod("b", "10.244.1.3")
    )
    assert book.give(request("c", in_use=ips("10.244.1.4"))) == ["10.244.1.5"]
    assert book.line("10.244.1.4").is_allocated, "in_use is adopted"
    assert book.give(request("d")) == ["10.244.1.6"]


def test_pods_that_hold_nothing() -> None:
    """HostNetwork and finished Pods do not keep addresses from others."""
    book = ledger(
        node("n1", "10.244.1.0/24"),
        pod("a", "10.244.1.2", host_network=True),
        pod("b", "10.244.1.3", finished=True),
    )
    assert book.give(request("c")) == ["10.244.1.2"]
    assert book.give(request("d")) == ["10.244.1.3"]


def test_an_interface_that_stands_keeps_its_address() -> None:
    """The ledger is lost, the sandbox is there: its ADD gets what it has."""
    book = ledger(node("n1", *DUAL), attachment("web", "10.244.1.9", "fd00:10:244:1::9"))
    assert book.give(request()) == ["10.244.1.9", "fd00:10:244:1::9"]


def test_two_addresses_of_one_owner_become_one() -> None:
    """Two replicas gave one each: the first written stays, whoever looks."""
    book = ledger(node("n1", "10.244.1.0/24"), block("10.244.1.0/24"))
    for last in (7, 4):
        fact = requests._give(book.state, request(), ip_address(f"10.244.1.{last}"), 0).fact
        book.tell(fact)
    assert violations(book.state) == [
        "interface c-web/eth0 on node n1 has 2 IPv4 addresses: 10.244.1.4, 10.244.1.7"
    ]
    assert book.give(request()) == ["10.244.1.7"]
    assert violations(book.state) == []


def test_unknown_node() -> None:
    """Its Node fact may be on its way: the agent is told to try again."""
    answer = ledger().allocate(request())
    assert "n1" in refused(answer)
    assert isinstance(answer, Refused)
    assert answer.failure.retry


def test_release_is_idempotent() -> None:
    """DEL of what is not there, and DEL twice, are no errors."""
    book = ledger(node("n1", *DUAL))
    book.release(request())
    book.give(request())
    book.release(request())
    seq = book.seq
    book.release(request())
    assert book.seq == seq
    assert not book.line("10.244.1.2").is_allocated


def test_blocks_of_a_node_without_pod_cidrs() -> None:
    """Carved from the pools: each node its own, the same again when asked again."""
    book = ledger(node("n1"), node("n2"))
    assert book.give(request("a", "n1")) == ["10.244.0.2", "fd00:10:244::2"]
    assert book.give(request("b", "n2")) == ["10.244.1.2", "fd00:10:244::102"]
    assert book.give(request("c", "n1")) == ["10.244.0.3", "fd00:10:244::3"]
    assert violations(book.state) == []


def test_carving_leaves_alone_what_others_have() -> None:
    """Blocks, podCIDRs of other nodes, and addresses of living Pods are walked round."""
    book = ledger(
        node("n1"),
        node("n2", "10.244.0.0/23"),
        block("10.244.2.0/24", "n3", own=True),
        pod("x", "10.244.3.7", node="n4"),
        attachment("y", "10.244.4.7", namespace="n5"),
        pools=(ip_address_pool("10.244.0.0/16"),),
    )
    assert book.give(request()) == ["10.244.5.2"]


def ip_address_pool(text: str) -> object:
    """A pool."""
    from tests.unit.ipam.build import nets

    return nets(text)[0]


def test_a_full_node_gets_another_block() -> None:
    """Only carved blocks grow; the pool ends with a refusal."""
    book = ledger(node("n1"), pools=(ip_address_pool("10.0.0.0/27"),), block_prefix_v4=28)
    given = [book.give(request(f"p{n}"))[0] for n in range(26)]
    assert given[13] == "10.0.0.18"
    assert "no free address" in refused(book.allocate(request("late")))


def test_no_carving_before_others_have_spoken() -> None:
    """After the log was lost, another node may have what looks free."""
    book = ledger(node("n1"))
    assert "other nodes" in refused(book.allocate(request(), may_carve=False))
    assert isinstance(book.allocate(request()), Allocated)


def test_pod_cidr_of_two_nodes() -> None:
    """The second node gets no address from it, and the reason names the CIDR."""
    book = ledger(node("n1", "10.244.1.0/24"), node("n2", "10.244.1.0/24"))
    book.give(request("a", "n1"))
    assert "10.244.1.0/24" in refused(book.allocate(request("b", "n2")))
    book.forget(node("n1"))
    book.pass_time(60_000)
    assert book.give(request("b", "n2")) == ["10.244.1.3"]


@pytest.mark.parametrize("cidrs", [(), DUAL])
def test_blocks_request(cidrs: tuple[str, ...]) -> None:
    """The agent sets up its gateway from it."""
    book = ledger(node("n1", *cidrs), switch("n1"))
    decision = requests.blocks(book.state, BlocksRequest(node="n1"), Context(0))
    while isinstance(decision, Need):
        assert all(map(book.write, decision.writes))
        decision = requests.blocks(book.state, BlocksRequest(node="n1"), Context(0))
    assert isinstance(decision, Blocks)
    assert [str(cidr) for cidr in decision.cidrs] == list(
        cidrs or ("10.244.0.0/24", "fd00:10:244::/120")
    )
    assert [int(gateway) & 0xFF for gateway in decision.gateways] == [1, 1]
    assert decision.pod_cidrs == book.state.rules.pools


def test_restart_from_the_log() -> None:
    """A replica that reads only the newest of each subject decides the same."""
    book = ledger(node("n1", *DUAL))
    for n in range(5):
        book.give(request(f"p{n}"))
    book.release(request("p2"))
    again = Ledger(book.replayed(), book.now_ms, book.seq, dict(book.subjects))
    assert again.state.lines == book.state.lines
    assert again.give(request("p3")) == book.give(request("p3"))
    assert again.give(request("new")) == book.give(request("new"))
