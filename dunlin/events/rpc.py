"""Requests and replies on the bus (`dunlin.v1.rpc.<service>.<operation>`)."""

from typing import Literal

from dunlin.events.facts import Event
from dunlin.model.addresses import IPAddress, IPNetwork


class Failure(Event, frozen=True, kw_only=True, tag_field="result", tag="failure"):
    """The request failed. `retry`: the same request may succeed later."""

    reason: str
    retry: bool = False


class AllocateRequest(Event, frozen=True, kw_only=True):
    """
    rpc.ipam.allocate: addresses for one interface, one of each family of the node's blocks.

    Idempotent by (node, container_id, ifname). `in_use`: addresses that the node's own record
    (OVSDB) holds for other interfaces: they are adopted into the ledger, never given.
    """

    node: str
    container_id: str
    ifname: str
    pod_namespace: str
    pod_name: str
    pod_uid: str = ""
    in_use: tuple[IPAddress, ...] = ()


class Allocated(Event, frozen=True, kw_only=True, tag_field="result", tag="allocated"):
    """`ips`: at most one of each family. `gateways`: the node's gateway of each, same order."""

    ips: tuple[IPAddress, ...]
    gateways: tuple[IPAddress, ...]


class ReleaseRequest(Event, frozen=True, kw_only=True):
    """rpc.ipam.release: idempotent; the addresses enter their cool-down."""

    node: str
    container_id: str
    ifname: str


class Released(Event, frozen=True, kw_only=True, tag_field="result", tag="released"):
    """`ips`: what was released now; empty if there was nothing."""

    ips: tuple[IPAddress, ...] = ()


class BlocksRequest(Event, frozen=True, kw_only=True):
    """rpc.ipam.blocks: the blocks of a node; gives it some if it has none."""

    node: str


class Blocks(Event, frozen=True, kw_only=True, tag_field="result", tag="blocks"):
    """`cidrs` of the node and the gateway address (first of each), same order."""

    cidrs: tuple[IPNetwork, ...]
    gateways: tuple[IPAddress, ...]
    pod_cidrs: tuple[IPNetwork, ...] = ()
    service_cidrs: tuple[IPNetwork, ...] = ()


class BarrierRequest(Event, frozen=True, kw_only=True):
    """
    rpc.flowctl.barrier.<node>: answered once that switch holds intents up to `revision` of `epoch`.

    `swept`: and nothing stands there any more that no intent explains (CNI ADD need not wait for
    that). `prepared` will do: of a change of policy that is prepared the switch lets through only
    what both versions allow (ADR 0030).
    """

    node: str
    revision: int
    epoch: str
    timeout_ms: int = 10_000
    swept: bool = False
    prepared: bool = False


class BarrierReply(Event, frozen=True, kw_only=True, tag_field="result", tag="barrier"):
    """
    `applied`: it does, but for intents that it refused; else `reason` says why not, for people.

    `missing`: ids of intents up to that revision that are not in force as asked (at most 100), also
    refused ones: a caller to whom one intent matters looks for it here.
    """

    node: str
    applied: bool
    revision: int
    missing: tuple[str, ...] = ()
    reason: str = ""


class SyncRequest(Event, frozen=True, kw_only=True):
    """rpc.watcher.sync: answered once all that the Kubernetes API holds now has been published."""

    timeout_ms: int = 10_000


class Synced(Event, frozen=True, kw_only=True, tag_field="result", tag="synced"):
    """The fact stream's sequence and epoch that cover it."""

    fact_seq: int
    fact_epoch: str


class WaitRequest(Event, frozen=True, kw_only=True):
    """rpc.flowctl.wait: until all that the Kubernetes API holds now is in force on every switch."""

    timeout_ms: int = 30_000


class MissingObject(Event, frozen=True, kw_only=True):
    """An intent that a switch lacks, and the Kubernetes object behind it ("" where not known)."""

    intent: str
    object: str = ""


class SwitchWait(Event, frozen=True, kw_only=True):
    """One switch: `applied`, or `reason` and what it lacks (at most 100)."""

    node: str
    applied: bool
    revision: int = 0
    reason: str = ""
    missing: tuple[MissingObject, ...] = ()


class WaitReply(Event, frozen=True, kw_only=True, tag_field="result", tag="wait"):
    """
    `stage`: what was waited for last: "watcher", "intents" (of ipam and planner) or "switches".

    `fact_seq`, `revision`: sequences of the fact and intent streams that cover it, 0 where not
    known.
    """

    applied: bool
    stage: Literal["watcher", "intents", "switches"]
    reason: str = ""
    fact_seq: int = 0
    revision: int = 0
    switches: tuple[SwitchWait, ...] = ()


class ConnectionsRequest(Event, frozen=True, kw_only=True):
    """
    rpc.agent.connections.<node>: what the node's conntrack holds of Pods' connections.

    `ips`: only connections that one of these has a part in; empty: all. `limit`: of items.
    """

    ips: tuple[IPAddress, ...] = ()
    limit: int = 10_000


class LiveConnection(Event, frozen=True, kw_only=True, array_like=True):
    """
    `count` live connections that differ in the client's port only.

    After translation: `destination` is the endpoint behind a Service. `protocol`: TCP, UDP, SCTP,
    ICMP, or a number as text; `port` 0 where it has none.
    """

    protocol: str
    source: IPAddress
    destination: IPAddress
    port: int
    count: int


class Connections(Event, frozen=True, kw_only=True, tag_field="result", tag="connections"):
    """`truncated`: there were more than `limit` items."""

    node: str
    items: tuple[LiveConnection, ...] = ()
    truncated: bool = False
