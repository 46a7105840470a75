"""Whatever happens in whatever order: no address is given twice, and the log says the same."""

from ipaddress import ip_network
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from dunlin.events.facts import AttachmentFact, Meta
from dunlin.events.rpc import Allocated
from dunlin.model.addresses import IPAddress
from dunlin_ipam.core.endpoints import plan_node
from dunlin_ipam.core.violations import violations
from tests.unit.ipam.build import Ledger, attachment, ledger, node, pod, request, switch

NODES = {"n1": ("10.244.1.0/28",), "n2": ()}
PODS = ("a", "b", "c", "d", "e", "f")
names = st.sampled_from(PODS)
nodes = st.sampled_from(sorted(NODES))


class World(RuleBasedStateMachine):
    """A watcher, two agents and ipam; `standing` is what the nodes really hold."""

    @initialize()
    def start(self) -> None:
        """Two nodes: one with podCIDRs, one without."""
        self.book: Ledger = ledger(
            *(node(name, *cidrs) for name, cidrs in NODES.items()),
            switch("n1"),
            switch("n2"),
            pools=(ip_network("10.245.0.0/24"),),
            block_prefix_v4=28,
        )
        self.standing: dict[tuple[str, str], AttachmentFact] = {}
        self.given: dict[IPAddress, tuple[tuple[str, str], int]] = {}
        self.generation = 0

    @rule(name=names, on=nodes)
    def bind(self, name: str, on: str) -> None:
        """A Pod appears; whatever stood for it elsewhere is for DEL to take down."""
        self.generation += 1
        self.book.tell(pod(name, node=on, meta=Meta(uid=f"{name}-{self.generation}")))

    @rule(name=names)
    def delete(self, name: str) -> None:
        """The Pod leaves the API."""
        self.book.forget(pod(name))

    @rule(name=names, on=nodes, sandbox=st.sampled_from(["s1", "s2"]), attach=st.booleans())
    def add(self, name: str, on: str, sandbox: str, attach: bool) -> None:
        """CNI ADD, with or without the interface coming up after it."""
        asked = request(name, on, container_id=f"{name}-{sandbox}-{on}", pod_uid="")
        answer = self.book.allocate(asked)
        if not isinstance(answer, Allocated):
            return
        owner = (on, f"{asked.container_id}/eth0")
        for ip in answer.ips:
            holder, since = self.given.get(ip, (owner, 0))
            standing = self.standing.get(holder)
            held = standing is not None and ip in standing.ips
            # Without an interface a holder keeps an address for the grace, at least.
            held = held or self.book.now_ms < since + self.book.state.rules.grace_ms
            assert holder == owner or not held, f"{ip} given to {owner}, but {holder} has it"
            self.given.setdefault(ip, (owner, self.book.now_ms))
            if holder != owner:
                self.given[ip] = (owner, self.book.now_ms)
        if attach:
            fact = attachment(
                name,
                *map(str, answer.ips),
                namespace=on,
                container_id=asked.container_id,
                pod_uid="",
            )
            self.standing[owner] = fact
            self.book.tell(fact)

    @rule(name=names, on=nodes, sandbox=st.sampled_from(["s1", "s2"]), early=st.booleans())
    def remove(self, name: str, on: str, sandbox: str, early: bool) -> None:
        """CNI DEL: interface and release in either order."""
        asked = request(name, on, container_id=f"{name}-{sandbox}-{on}")
        fact = self.standing.pop((on, f"{asked.container_id}/eth0"), None)
        owner = (on, f"{asked.container_id}/eth0")
        self.given = {ip: held for ip, held in self.given.items() if held[0] != owner}
        if early:
            self.book.release(asked)
        if fact is not None:
            self.book.forget(fact)
        if not early:
            self.book.release(asked)

    @rule(on=nodes)
    def work(self, on: str) -> None:
        """Ipam does its duties."""
        self.book.work(on)

    @rule(ms=st.sampled_from([1, 30_000, 61_000]))
    def wait(self, ms: int) -> None:
        """Time passes."""
        self.book.pass_time(ms)

    @rule()
    def lose_the_log(self) -> None:
        """The stream is deleted: watcher and agents publish what they see, ipam starts over."""
        old = self.book
        self.given = {
            ip: (owner, since)
            for ip, (owner, since) in self.given.items()
            if owner in self.standing
        }
        self.book = ledger(
            *(node(name, *cidrs) for name, cidrs in NODES.items()),
            *old.state.facts["pod"].values(),
            *self.standing.values(),
            switch("n1"),
            switch("n2"),
            pools=(ip_network("10.245.0.0/24"),),
            block_prefix_v4=28,
        )
        self.book.now_ms = old.now_ms
        for name in NODES:
            self.book.work(name)

    @invariant()
    def sound(self) -> None:
        """The ledger breaks no rule, and everything that stands is in it."""
        if not hasattr(self, "book"):
            return
        assert violations(self.book.state) == []
        for (on, owner), fact in self.standing.items():
            for ip in fact.ips:
                line = self.book.state.lines.get(ip)
                assert line is not None
                assert (line.is_allocated, line.owner) == (True, (on, owner))

    @invariant()
    def replayable(self) -> None:
        """The newest of each subject gives the same state: lines, indexes, intents."""
        if not hasattr(self, "book"):
            return
        again, state = self.book.replayed(), self.book.state
        assert again.lines == state.lines
        assert again.seqs == state.seqs
        for index in (
            "lines_of_owner",
            "lines_of_node",
            "lines_of_pod",
            "blocks_of_node",
            "attachments_of_node",
            "attachments_of_pod",
            "attachments_with",
            "pods_of_node",
            "pods_with",
            "buckets",
        ):
            assert getattr(again, index) == getattr(state, index), index
        assert _uses(again) == _uses(state)
        for name in NODES:
            assert plan_node(again, name) == plan_node(state, name)

    def teardown(self) -> None:
        """Delete everything and wait: nothing leaks."""
        if not hasattr(self, "book"):
            return
        for name in PODS:
            self.book.forget(pod(name))
        for fact in self.standing.values():
            self.book.forget(fact)
        self.book.pass_time(61_000)
        for on in NODES:
            self.book.work(on)
        left = [line for line in self.book.state.lines.values() if line.is_allocated]
        assert left == []


def _uses(state: Any) -> dict[Any, Any]:
    return {cidr: (use.fact, use.allocated, use.released) for cidr, use in state.uses.items()}


World.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestWorld = World.TestCase
