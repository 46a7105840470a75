"""Counters, live from a switch: by intent, by flow of a service, by port, by group."""

import asyncio
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from weakref import WeakKeyDictionary

from dunlin.events.intents import EndpointIntent
from dunlin.openflow import codec, messages
from dunlin.openflow.flow import Action, Ct
from dunlin.openflow.render import actions_text, match_text
from dunlin.pipeline.bandwidth import direction_of, meters
from dunlin.pipeline.layout import WANTED_REG, Table
from dunlin.pipeline.traffic import number_in_label
from dunlin_flowctl.adapters.session import Session
from dunlin_flowctl.core.cookies import CookiesOn
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.core.program import Compiled
from dunlin_flowctl.handles import Handles, now_ms
from dunlin_flowctl.models import (
    BandwidthCounters,
    BucketCounters,
    Counters,
    FlowCounters,
    GroupCountersModel,
    IntentCounters,
    PortCountersModel,
    ServiceTraffic,
)
from dunlin_flowctl.policy_counters import PolicySums
from dunlin_flowctl.views import NAMES, object_of

UNCOUNTED = 2**64 - 1
ONE_BY_ONE = ("route", "service")
"""Kinds of intents whose flows are also shown one by one."""
OF_POLICIES = ("policy", "policyclass")
"""Kinds of intents whose flows are also summed by rule, or by who isolates."""


@dataclass
class CounterCache:
    """The last answer of each switch: whoever asks sooner than the interval gets it again."""

    handles: Handles
    _answers: dict[str, tuple[float, Counters]] = field(default_factory=dict)
    _locks: dict[str, asyncio.Lock] = field(default_factory=dict)

    async def read(self, node: str, session: Session) -> Counters:
        """Raises SessionClosed or Refusal."""
        async with self._locks.setdefault(node, asyncio.Lock()):
            at, answer = self._answers.get(node, (-1e9, None))
            if answer is None or time.monotonic() - at >= self.handles.settings.counters_interval_s:
                async with self.handles.dumps.one():
                    answer = await read_counters(self.handles.desired, node, session)
                self._answers[node] = (time.monotonic(), answer)
            return answer


async def read_counters(desired: Desired, node: str, session: Session) -> Counters:
    """Everything, in five requests."""
    flows = _Flows(desired, desired.cookies_on(node))
    async for part in session.replies(codec.encode_flow_dump_request, messages.FlowDump):
        flows.add(part.entries)
    ports: list[messages.PortCounters] = []
    async for stats in session.replies(codec.encode_port_stats_request, messages.PortStats):
        ports.extend(stats.entries)
    names: dict[int, str] = {}
    async for desc in session.replies(codec.encode_port_desc_request, messages.PortDesc):
        names.update((port.port, port.name) for port in desc.ports)
    groups: list[messages.GroupCounters] = []
    async for found in session.replies(codec.encode_group_stats_request, messages.GroupStats):
        groups.extend(found.entries)
    limits: list[messages.MeterCounters] = []
    async for of_meters in session.replies(codec.encode_meter_stats_request, messages.MeterStats):
        limits.extend(of_meters.entries)
    return Counters(
        node=node,
        at_ms=now_ms(),
        intents=sorted(flows.by_intent.values(), key=lambda item: item.intent),
        flows=flows.of_services,
        ports=_ports(desired, node, ports, names),
        groups=[
            _group(desired, group, flows.of_slots.get(group.group_id))
            for group in sorted(groups, key=lambda g: g.group_id)
        ],
        services=flows.traffic,
        rules=flows.of_policies.rules,
        denied=flows.of_policies.denied,
        bandwidth=list(_bandwidth(desired, node, limits)),
    )


class _Flows:
    """Sums over flows as parts of the dump come in."""

    def __init__(self, desired: Desired, index: CookiesOn) -> None:
        self._desired = desired
        self._index = index
        self.by_intent: dict[str, IntentCounters] = {}
        self.of_services: list[FlowCounters] = []
        self.traffic: list[ServiceTraffic] = []
        self.of_policies = PolicySums(desired.intents)
        self.of_slots: dict[int, dict[str, list[int]]] = {}
        """Group -> endpoint -> [packets, bytes] of table EndpointSlot."""

    def add(self, rows: Sequence[messages.InstalledFlow]) -> None:
        for row in rows:
            if row.flow.table == Table.SERVICE_TRAFFIC:
                # A flow for each endpoint of the cluster: only those with traffic are told.
                if row.packets:
                    self.traffic.extend(_traffic(row))
                continue
            intent_id = self._index.lookup(row.flow.cookie)
            if intent_id is None:
                continue
            total = self.by_intent.get(intent_id)
            if total is None:
                total = self.by_intent[intent_id] = IntentCounters(
                    intent=intent_id,
                    object=object_of(self._desired, intent_id),
                    flows=0,
                    packets=0,
                    bytes=0,
                )
            total.flows += 1
            total.packets += row.packets
            total.bytes += row.bytes
            kind = intent_id.split("/", 2)[1]
            if row.flow.table == Table.ENDPOINT_SLOT:
                self._add_slot(row)
            elif kind in OF_POLICIES:
                self.of_policies.add(intent_id, row)
            elif kind in ONE_BY_ONE:
                self.of_services.append(
                    FlowCounters(
                        intent=intent_id,
                        table=NAMES.table(row.flow.table),
                        table_id=row.flow.table,
                        match=match_text(row.flow.match),
                        packets=row.packets,
                        bytes=row.bytes,
                    )
                )

    def _add_slot(self, row: messages.InstalledFlow) -> None:
        wanted = next(item.value for item in row.flow.match if item.field == WANTED_REG)
        sums = self.of_slots.setdefault(wanted, {}).setdefault(_endpoint(row.flow.actions), [0, 0])
        sums[0] += row.packets
        sums[1] += row.bytes


def _traffic(row: messages.InstalledFlow) -> Iterator[ServiceTraffic]:
    """Of a flow of an endpoint; what is no Service's has no ct_label."""
    for item in row.flow.match:
        if item.field == "ct_label":
            number = f"{number_in_label(item.value):016x}"
            yield ServiceTraffic(endpoint_number=number, packets=row.packets, bytes=row.bytes)


def _ports(
    desired: Desired,
    node: str,
    ports: Sequence[messages.PortCounters],
    names: dict[int, str],
) -> list[PortCountersModel]:
    endpoints = {
        version.intent.ofport: version.intent
        for version in desired.intents_of(node)
        if isinstance(version.intent, EndpointIntent)
    }
    models = []
    for port in sorted(ports, key=lambda p: p.port):
        endpoint = endpoints.get(port.port)
        counts = {
            name: None if (value := getattr(port, name)) == UNCOUNTED else value
            for name in PortCountersModel.model_fields
            if name[:3] in {"rx_", "tx_"}
        }
        models.append(
            PortCountersModel(
                port=port.port,
                name=names.get(port.port, ""),
                intent=endpoint.id if endpoint else "",
                object=endpoint.object if endpoint else "",
                **counts,
            )
        )
    return models


def _bandwidth(
    desired: Desired, node: str, counters: Sequence[messages.MeterCounters]
) -> Iterator[BandwidthCounters]:
    """Of the limits that today's intents have, by intent and direction."""
    counted = {one.meter_id: one for one in counters}
    for version in desired.intents_of(node):
        if not isinstance(version.intent, EndpointIntent):
            continue
        for meter in meters(version.intent):
            one = counted.get(meter.meter_id)
            if one is not None:
                yield BandwidthCounters(
                    intent=version.intent.id,
                    object=version.intent.object,
                    direction=direction_of(meter.meter_id),
                    limit_kbps=meter.rate,
                    dropped_packets=one.dropped_packets,
                    dropped_bytes=one.dropped_bytes,
                )


def _endpoint(actions: Sequence[Action]) -> str:
    """Where a bucket sends connections: `10.0.1.5:80`, `[fd00::5]:80`; "" for nowhere."""
    for action in actions:
        nat = action.nat if isinstance(action, Ct) else None
        if nat is not None and nat.direction == "dst" and nat.address is not None:
            host = f"[{nat.address}]" if nat.address.version == 6 else str(nat.address)
            return f"{host}:{nat.port_min}"
    return ""


def _group(
    desired: Desired,
    group: messages.GroupCounters,
    slots: dict[str, list[int]] | None = None,
) -> GroupCountersModel:
    """`slots`: of a group that leaves its choice to flows, what they counted by endpoint."""
    owner = desired.shared.owner(group.group_id)
    part = desired.shared.effective.get(owner) if owner is not None else None
    if slots is not None:
        names = sorted(slots)
        group = replace(group, buckets=tuple((slots[n][0], slots[n][1]) for n in names))
        known: BucketTexts = tuple((i, "", name) for i, name in enumerate(names))
    else:
        known = _buckets(part, group.group_id) if part is not None else ()
    # Statistics come in the order of the buckets; during a change their number may differ.
    if len(known) != len(group.buckets):
        known = tuple((position, "", "") for position in range(len(group.buckets)))
    return GroupCountersModel(
        group_id=group.group_id,
        intent=owner or "",
        object=object_of(desired, owner or ""),
        packets=group.packets,
        bytes=group.bytes,
        buckets=[
            BucketCounters(
                bucket_id=bucket_id,
                actions=actions,
                endpoint=endpoint,
                packets=packets,
                bytes=octets,
            )
            for (bucket_id, actions, endpoint), (packets, octets) in zip(
                known, group.buckets, strict=True
            )
        ],
    )


BucketTexts = tuple[tuple[int, str, str], ...]
"""(bucket_id, actions, endpoint) of each bucket of a group."""

_TEXTS: WeakKeyDictionary[Compiled, dict[int, BucketTexts]] = WeakKeyDictionary()


def _buckets(part: Compiled, group_id: int) -> BucketTexts:
    """
    Made once for each compiled intent.

    The texts of 1,000 Services of 10 endpoints were most of the work of a poll, and never change.
    """
    texts = _TEXTS.setdefault(part, {})
    found = texts.get(group_id)
    if found is None:
        group = part.groups.get(group_id)
        found = texts[group_id] = tuple(
            (bucket.bucket_id, actions_text(bucket.actions, NAMES), _endpoint(bucket.actions))
            for bucket in (group.buckets if group is not None else ())
        )
    return found
