"""What ipam does to its ledger unasked."""

from ipaddress import ip_network

from hypothesis import given
from hypothesis import strategies as st

from dunlin_ipam.core.violations import violations
from dunlin_ipam.state import State
from tests.unit.ipam.build import (
    attachment,
    block,
    ips,
    ledger,
    nets,
    node,
    pod,
    request,
    switch,
)

CIDR = "10.244.1.0/24"
MINUTE = 60_000


def test_pod_cidrs_are_claimed() -> None:
    """A Node's blocks are in the ledger before its first Pod."""
    book = ledger(node("n1", CIDR))
    book.work()
    assert [str(cidr) for cidr in book.state.blocks("n1")] == [CIDR]


@given(st.lists(st.tuples(st.integers(0, 255), st.integers(16, 28)), max_size=8))
def test_overlapping_blocks_are_found_by_index(drawn: list[tuple[int, int]]) -> None:
    """As by looking at every block of the ledger, whatever lengths their prefixes have."""
    state = State()
    cidrs = [ip_network(f"10.0.{third}.0/{length}", strict=False) for third, length in drawn]
    for number, cidr in enumerate(cidrs[1:], 1):
        state.put(block(str(cidr)), number)
    for cidr in cidrs:
        naive = any(known != cidr and known.overlaps(cidr) for known in state.uses)
        assert state.overlaps_block(cidr) == naive


def test_adoption_after_the_log_was_lost() -> None:
    """Attachments with their owner, Pods by their status; then nobody else gets the addresses."""
    book = ledger(
        node("n1", CIDR),
        pod("a", "10.244.1.2"),
        pod("b", "10.244.1.3"),
        attachment("a", "10.244.1.2"),
        switch(),
    )
    book.work()
    assert book.line("10.244.1.2").fact.owner == "c-a/eth0"
    assert book.line("10.244.1.3").fact.owner == ""
    assert book.line("10.244.1.3").fact.pod_name == "b"
    assert len(book.plan().intents) == 1
    book.tell(attachment("b", "10.244.1.3"))
    book.work()
    assert book.line("10.244.1.3").fact.owner == "c-b/eth0"
    assert len(book.plan().intents) == 2
    assert book.give(request("c")) == ["10.244.1.4"]


def test_carved_blocks_are_known_again() -> None:
    """Without podCIDRs: from the gateway's address, the attachments and the Pods of the node."""
    book = ledger(
        node("n1"),
        switch("n1", "10.244.7.1", "fd00:10:244::701"),
        pod("a", "10.244.9.3"),
        attachment("b", "10.244.8.2"),
    )
    book.work()
    cidrs = {str(cidr) for cidr in book.state.blocks("n1")}
    assert cidrs == {"10.244.7.0/24", "10.244.8.0/24", "10.244.9.0/24", "fd00:10:244::700/120"}
    assert violations(book.state) == []


def test_a_deleted_pod_frees_its_address_after_its_attachment() -> None:
    """As long as the interface stands the address is taken, DEL or not."""
    book = ledger(node("n1", CIDR), switch(), pod("web"))
    book.give(request())
    book.tell(attachment("web", "10.244.1.2"))
    book.forget(pod("web"))
    book.pass_time(10 * MINUTE)
    book.work()
    assert book.line("10.244.1.2").is_allocated
    book.forget(attachment("web", "10.244.1.2"))
    book.work()
    assert not book.line("10.244.1.2").is_allocated


def test_an_add_under_way_is_left_alone() -> None:
    """No attachment and no Pod fact yet: the grace first, and duties say when to look again."""
    book = ledger(node("n1", CIDR), switch())
    book.give(request())
    again = book.work()
    assert book.line("10.244.1.2").is_allocated
    assert again == book.now_ms + MINUTE
    book.pass_time(MINUTE)
    book.work()
    assert not book.line("10.244.1.2").is_allocated


def test_nothing_is_released_before_the_agent_has_spoken() -> None:
    """After a loss of the log its attachments may just not be there yet."""
    book = ledger(node("n1", CIDR))
    book.give(request())
    book.pass_time(10 * MINUTE)
    book.work()
    assert book.line("10.244.1.2").is_allocated
    book.tell(switch())
    book.work()
    assert not book.line("10.244.1.2").is_allocated


def test_a_living_pod_keeps_its_address() -> None:
    """The Pod is there, its interface is not: ADD may be late, or DEL is to come."""
    book = ledger(node("n1", CIDR), switch(), pod("web"))
    book.give(request())
    book.pass_time(10 * MINUTE)
    book.work()
    assert book.line("10.244.1.2").is_allocated


def test_finished_and_reborn_pods_do_not() -> None:
    """Succeeded or Failed, moved to another node, or another Pod of the same name."""
    for changed in (
        pod("web", finished=True),
        pod("web", node="n2"),
        pod("web", meta=pod("other").meta),
    ):
        book = ledger(node("n1", CIDR), switch(), pod("web"))
        book.give(request())
        book.tell(changed)
        book.pass_time(MINUTE)
        book.work()
        assert not book.line("10.244.1.2").is_allocated, changed


def test_the_address_of_an_old_sandbox() -> None:
    """The Pod's interface stands in another sandbox: what the old one had is free."""
    book = ledger(node("n1", CIDR), switch(), pod("web"))
    book.give(request("web", container_id="old"))
    book.give(request("web", container_id="new"))
    book.tell(attachment("web", "10.244.1.3", container_id="new"))
    book.pass_time(MINUTE)
    book.work()
    assert not book.line("10.244.1.2").is_allocated
    assert book.line("10.244.1.3").is_allocated


def test_del_before_its_attachment_is_gone() -> None:
    """A release that is newer than the attachment is not undone by adoption."""
    book = ledger(node("n1", CIDR), switch(), pod("web"))
    book.give(request())
    book.tell(attachment("web", "10.244.1.2"))
    book.release(request())
    book.work()
    assert not book.line("10.244.1.2").is_allocated
    book.tell(attachment("web", "10.244.1.2"))
    book.work()
    assert book.line("10.244.1.2").is_allocated, "said again: it does stand"


def test_in_use_that_nobody_explains() -> None:
    """Adopted from OVSDB, never attached: free after the grace."""
    book = ledger(node("n1", CIDR), switch())
    book.give(request("a", in_use=ips("10.244.1.9")))
    book.pass_time(MINUTE)
    book.work()
    assert not book.line("10.244.1.9").is_allocated


def test_a_deleted_node_loses_everything_after_the_grace() -> None:
    """Addresses, blocks, at last the lines; not before, and not if it comes back."""
    book = ledger(node("n1"), switch())
    book.give(request())
    book.tell(attachment("web", "10.244.0.2"))
    book.forget(node("n1"))
    again = book.work()
    assert again == book.now_ms + MINUTE
    book.tell(node("n1"))
    book.work()
    book.forget(node("n1"))
    book.pass_time(MINUTE - 1)
    book.work()
    assert book.line("10.244.0.2").is_allocated
    book.pass_time(MINUTE)
    book.work()
    assert not book.line("10.244.0.2").is_allocated
    assert book.state.uses == {}
    book.pass_time(MINUTE)
    assert book.work() is None
    assert book.state.lines == {}
    assert book.plan().intents == ()


def test_a_pod_cidr_goes_over_to_its_new_node() -> None:
    """Kubernetes gave it to n2 after n1 was gone: what n1 had in it is released, not shared."""
    book = ledger(node("n1", CIDR), node("n2", CIDR), switch("n1"), switch("n2"))
    book.give(request("web", "n1"))
    book.work("n2")
    assert book.state.blocks("n2") == []
    book.forget(node("n1"))
    book.work("n2")
    assert book.state.blocks("n2") == list(nets(CIDR))
    book.pass_time(MINUTE)
    book.work("n1")
    book.pass_time(MINUTE)
    book.work("n1")
    assert violations(book.state) == []
    assert book.give(request("other", "n2")) == ["10.244.1.3"]


def test_a_carved_block_goes_when_pod_cidrs_come() -> None:
    """But not while something in it is allocated."""
    book = ledger(node("n1"), switch(), pod("web"))
    book.give(request())
    book.tell(node("n1", CIDR))
    book.work()
    assert len(book.state.blocks("n1")) == 3
    assert book.give(request("b"))[0] == "10.244.1.2"
    book.release(request())
    book.work()
    assert [str(cidr) for cidr in book.state.blocks("n1")] == [CIDR]


def test_blocks_of_others_are_not_dropped() -> None:
    """A block whose node is someone else's business stays."""
    book = ledger(node("n1", CIDR), block("10.244.2.0/24", "n2"))
    book.work("n1")
    assert len(book.state.uses) == 2
