"""
Denied packets that policies ask to log: a line each, and the latest for REST. Never in the way.

The switch samples (a meter); here a token bucket bounds all switches together, and what repeats
within a while is one entry with a count. No queue, no waiting, nothing that grows.
"""

import time
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass, replace

import structlog

from dunlin.events.intents import PolicyClassIntent, PolicyIntent
from dunlin.events.intents import intent_id as make_id
from dunlin.model.addresses import IPAddress
from dunlin.openflow.flow import FieldMatch
from dunlin.openflow.frame import Headers, headers
from dunlin.openflow.messages import PacketIn
from dunlin.pipeline.layout import DENY_USERDATA
from dunlin.subjects import ALL_SCOPE
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.core.bucket import TokenBucket
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.metrics import FlowctlMetrics
from dunlin_flowctl.policy_counters import isolating

log = structlog.get_logger(__name__)

KEPT_MAX = 1000
STREAMS_MAX = 2048
"""Streams whose repetitions are counted, at one time."""


@dataclass(frozen=True, slots=True)
class Denial:
    """
    One denied packet, or several of one stream (`packets`: sampled ones, in this entry).

    `policies` isolate the Pod and no rule allowed it; or `rule` ≥ 0 (an index) of the one policy
    denies. `asked`: the Service's address and port, where load balancing chose the destination.
    """

    at_ms: int
    node: str
    direction: str
    policies: tuple[str, ...]
    rule: int
    source: str
    source_ip: str
    source_port: int
    destination: str
    destination_ip: str
    destination_port: int
    protocol: str
    asked: str
    packets: int = 1


Stream = tuple[str, bytes, IPAddress, IPAddress, str, int]


class Denials:
    """Of all switches of this replica."""

    def __init__(
        self, desired: Desired, settings: FlowctlSettings, metrics: FlowctlMetrics
    ) -> None:
        self._desired = desired
        self._metrics = metrics
        self._window_s = settings.deny_log_window_s
        self._bucket = TokenBucket(settings.deny_log_rate, settings.deny_log_burst)
        self._streams: OrderedDict[Stream, tuple[float, int]] = OrderedDict()
        self._kept: deque[Denial] = deque(maxlen=KEPT_MAX)

    def latest(self, namespace: str | None, limit: int) -> Iterator[Denial]:
        """Newest first; `namespace`: of either end, or of a policy."""
        prefix = f"{namespace}/"
        found = 0
        for one in reversed(self._kept):
            if found == limit:
                return
            names = (one.source, one.destination, *one.policies)
            if namespace is None or any(name.startswith(prefix) for name in names):
                found += 1
                yield one

    def packet_in(self, node: str, packet: PacketIn) -> None:
        """Log it, or count why not: repeated, limited, unreadable, unknown (a policy that went)."""
        self._metrics.denials.labels(self._take(node, packet)).inc()

    def _take(self, node: str, packet: PacketIn) -> str:
        found = headers(packet.data)
        if found is None:
            return "unreadable"
        now = time.monotonic()
        what = packet.userdata[len(DENY_USERDATA) :]
        stream = (
            node, what, found.source, found.destination, found.protocol, found.destination_port
        )  # fmt: skip
        since, repeated = self._streams.get(stream, (-self._window_s, 0))
        if now - since < self._window_s:
            self._streams[stream] = (since, repeated + 1)
            return "repeated"
        if not self._bucket.take(now):
            return "limited"
        denial = self._denial(node, what, packet, found)
        if denial is None:
            return "unknown"
        self._streams[stream] = (now, 0)
        self._streams.move_to_end(stream)
        if len(self._streams) > STREAMS_MAX:
            self._streams.popitem(last=False)
        self._keep(replace(denial, packets=1 + repeated))
        return "logged"

    def _keep(self, denial: Denial) -> None:
        self._kept.append(denial)
        values = {name: getattr(denial, name) for name in denial.__slots__ if name != "at_ms"}
        log.info("denied by policy", **values)

    def _denial(self, node: str, what: bytes, packet: PacketIn, found: Headers) -> Denial | None:
        decided = self._decided(what.decode("utf-8", "replace"))
        if decided is None:
            return None
        direction, policies, rule = decided
        return Denial(
            at_ms=int(time.time() * 1000),
            node=node,
            direction=direction,
            policies=policies,
            rule=rule,
            source=self._desired.pods.of(found.source),
            source_ip=str(found.source),
            source_port=found.source_port,
            destination=self._desired.pods.of(found.destination),
            destination_ip=str(found.destination),
            destination_port=found.destination_port,
            protocol=found.protocol,
            asked=_asked(packet, found),
        )

    def _decided(self, what: str) -> tuple[str, tuple[str, ...], int] | None:
        """(direction, policies, rule or -1) of a flow's userdata; see `pipeline.policy`."""
        kind, rest = what[:1], what[1:]
        if kind == "C":
            version = self._desired.intents.get(make_id(ALL_SCOPE, "policyclass", rest))
            subjects = version.intent if version else None
            if isinstance(subjects, PolicyClassIntent):
                return subjects.role, tuple(isolating(subjects)), -1
            return None
        number, _, key = rest.partition(":")
        version = self._desired.intents.get(make_id(ALL_SCOPE, "policy", key))
        policy = version.intent if version else None
        if not isinstance(policy, PolicyIntent):
            return None
        rule = next((r for r in policy.rules if str(r.conj_id) == number), None)
        return (rule.direction, (key.lstrip("/"),), rule.index) if rule else None


def _asked(packet: PacketIn, found: Headers) -> str:
    """The address and port before load balancing; "" where it is the destination itself."""
    fields = {item.field: item for item in packet.match}
    address = fields.get("ct_nw_dst") or fields.get("ct_ipv6_dst")
    port = fields.get("ct_tp_dst", FieldMatch("ct_tp_dst", 0)).value
    if address is None or not address.value:
        return ""
    ip = type(found.destination)(address.value)
    if (ip, port) in {
        (found.destination, found.destination_port), (found.destination, 0)
    }:  # fmt: skip
        return ""
    # A reply's original direction is the other way about.
    if ip == found.source:
        return ""
    return f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}"
