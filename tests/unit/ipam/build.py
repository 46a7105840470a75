"""Facts in few words, and a ledger without a bus, for ipam's tests."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address, ip_network
from typing import Any

from dunlin.events.facts import (
    AttachmentFact,
    BlockFact,
    Fact,
    Meta,
    NodeFact,
    PodFact,
    SwitchFact,
    SyncFact,
    kind_of,
)
from dunlin.events.rpc import Allocated, AllocateRequest, Released, ReleaseRequest
from dunlin.model.addresses import IPAddress, IPNetwork, derived_dpid, derived_mac, parse_mac
from dunlin_ipam.core import requests
from dunlin_ipam.core.duties import duties
from dunlin_ipam.core.endpoints import Plan, plan_node
from dunlin_ipam.core.events import Deleted, Event, Upserted, Write
from dunlin_ipam.core.requests import Context, Need, Refused
from dunlin_ipam.core.step import apply
from dunlin_ipam.state import Line, Rules, State

RULES = Rules(
    pools=(ip_network("10.244.0.0/16"), ip_network("fd00:10:244::/48")),
    service_cidrs=(ip_network("10.96.0.0/12"),),
)


def nets(*texts: str) -> tuple[IPNetwork, ...]:
    """Networks from text."""
    return tuple(map(ip_network, texts))


def ips(*texts: str) -> tuple[IPAddress, ...]:
    """Addresses from text."""
    return tuple(map(ip_address, texts))


def node(name: str = "n1", *cidrs: str) -> NodeFact:
    """A ready node with these podCIDRs."""
    return NodeFact(name=name, ips=ips("192.0.2.1"), pod_cidrs=nets(*cidrs), ready=True)


def switch(name: str = "n1", *gateways: str) -> SwitchFact:
    """What the agent says once it has published all attachments."""
    return SwitchFact(
        name=name,
        dpid=derived_dpid(name),
        router_mac=derived_mac("router", name),
        uplink_mac=parse_mac("02:00:00:00:00:01"),
        gateway_port=1,
        gateway_ips=ips(*gateways),
    )


def pod(name: str = "web", *addresses: str, **changes: Any) -> PodFact:
    """A running Pod in `default` on n1."""
    values: dict[str, Any] = {
        "namespace": "default",
        "name": name,
        "node": "n1",
        "ips": ips(*addresses),
        "meta": Meta(uid=f"uid-{name}"),
    }
    return PodFact(**(values | changes))


def attachment(pod_name: str = "web", *addresses: str, **changes: Any) -> AttachmentFact:
    """The interface of `default/<pod_name>` in the sandbox `c-<pod_name>` on n1."""
    container = changes.pop("container_id", f"c-{pod_name}")
    values: dict[str, Any] = {
        "namespace": "n1",
        "name": f"{container}/eth0",
        "pod_namespace": "default",
        "pod_name": pod_name,
        "pod_uid": f"uid-{pod_name}",
        "container_id": container,
        "ips": ips(*addresses),
        "mac": parse_mac("02:00:00:00:00:05"),
        "ofport": 10,
        "port_name": f"p-{pod_name}",
    }
    return AttachmentFact(**(values | changes))


def request(pod_name: str = "web", on: str = "n1", **changes: Any) -> AllocateRequest:
    """ADD of `default/<pod_name>`."""
    values: dict[str, Any] = {
        "node": on,
        "container_id": f"c-{pod_name}",
        "ifname": "eth0",
        "pod_namespace": "default",
        "pod_name": pod_name,
        "pod_uid": f"uid-{pod_name}",
    }
    return AllocateRequest(**(values | changes))


def release_of(asked: AllocateRequest) -> ReleaseRequest:
    """The DEL of an ADD."""
    return ReleaseRequest(node=asked.node, container_id=asked.container_id, ifname=asked.ifname)


@dataclass
class Ledger:
    """A state with the fact stream it stands for; writes succeed only if compare-and-set would."""

    state: State = field(default_factory=lambda: State(RULES))
    now_ms: int = 1_000_000
    seq: int = 0
    subjects: dict[str, int] = field(default_factory=dict)
    log: list[Event] = field(default_factory=list)

    def tell(self, *facts: Fact) -> None:
        """Publish facts of others."""
        for fact in facts:
            self._append(fact.subject, partial(Upserted, fact))  # type: ignore[arg-type]

    def forget(self, *facts: Fact) -> None:
        """Publish tombstones."""
        for fact in facts:
            kind = kind_of(type(fact))
            self._append(fact.subject, partial(Deleted, kind, fact.namespace, fact.name))

    def _append(self, subject: str, event: Callable[[int], Event]) -> None:
        self.seq += 1
        self.subjects[subject] = self.seq
        self.log.append(event(self.seq))
        apply(self.state, [self.log[-1]])

    def write(self, write: Write) -> bool:
        """Compare-and-set."""
        if self.subjects.get(write.fact.subject, 0) != write.expected_seq:
            return False
        (self.forget if write.gone else self.tell)(write.fact)
        return True

    def allocate(self, asked: AllocateRequest, *, may_carve: bool = True) -> Allocated | Refused:
        """As the shell does it: write what is needed until there is an answer."""
        for _ in range(20):
            decision = requests.allocate(self.state, asked, Context(self.now_ms, may_carve))
            match decision:
                case Allocated():
                    return decision
                case Need(writes):
                    assert writes
                    assert all(map(self.write, writes))
                case Refused(_, undo):
                    assert all(map(self.write, undo))
                    return decision
        raise AssertionError("it never ends")

    def give(self, asked: AllocateRequest) -> list[str]:
        """Addresses of a successful ADD."""
        answer = self.allocate(asked)
        assert isinstance(answer, Allocated), answer
        return [str(ip) for ip in answer.ips]

    def release(self, asked: AllocateRequest) -> None:
        """DEL."""
        decision = requests.release(self.state, release_of(asked), self.now_ms)
        if isinstance(decision, Need):
            assert all(map(self.write, decision.writes))
            decision = requests.release(self.state, release_of(asked), self.now_ms)
        assert isinstance(decision, Released)

    def work(self, name: str = "n1") -> int | None:
        """Do all duties of a node; returns when time may bring more."""
        for _ in range(20):
            found = duties(self.state, name, self.now_ms)
            if not found.writes:
                return found.again_ms
            assert all(map(self.write, found.writes))
        raise AssertionError("duties never end")

    def pass_time(self, ms: int) -> None:
        """Later."""
        self.now_ms += ms

    def plan(self, name: str = "n1") -> Plan:
        """Endpoint intents of a node."""
        return plan_node(self.state, name)

    def line(self, ip: str) -> Line:
        """The ledger's line of an address."""
        return self.state.lines[ip_address(ip)]

    def replayed(self) -> State:
        """A state made from the newest of each subject alone, as after a restart."""
        newest: dict[str, Event] = {}
        for event in self.log:
            key = str(event.fact.subject if isinstance(event, Upserted) else event)
            if isinstance(event, Deleted):
                key = f"{event.kind}/{event.namespace}/{event.name}"
            else:
                fact = event.fact
                key = f"{kind_of(type(fact))}/{fact.namespace}/{fact.name}"
            newest[key] = event
        state = State(self.state.rules)
        apply(state, sorted(newest.values(), key=lambda event: event.seq))
        return state


def ledger(*facts: Fact, **rules: Any) -> Ledger:
    """A ledger whose watcher is in sync, with these facts."""
    made = Ledger(State(replace(RULES, **rules)))
    made.tell(SyncFact(name="watcher"), *facts)
    return made


def block(cidr: str, owner: str = "n1", *, own: bool = False) -> BlockFact:
    """A block of the ledger."""
    return BlockFact(name=cidr, cidr=ip_network(cidr), node=owner, own=own)
