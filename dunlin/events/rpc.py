"""Requests and replies on the bus (`dunlin.v1.rpc.<service>.<operation>`)."""

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
    """rpc.flowctl.barrier.<node>: answered once that switch holds intents up to `revision` of `epoch`."""

    node: str
    revision: int
    epoch: str
    timeout_ms: int = 10_000


class BarrierReply(Event, frozen=True, kw_only=True, tag_field="result", tag="barrier"):
    """`applied`: it does; else `missing` names intent ids that it lacks (at most 100)."""

    node: str
    applied: bool
    revision: int
    missing: tuple[str, ...] = ()


class SyncRequest(Event, frozen=True, kw_only=True):
    """rpc.watcher.sync: answered once everything the Kubernetes API holds now has been published."""

    timeout_ms: int = 10_000


class Synced(Event, frozen=True, kw_only=True, tag_field="result", tag="synced"):
    """The fact stream's sequence and epoch that cover it."""

    fact_seq: int
    fact_epoch: str
