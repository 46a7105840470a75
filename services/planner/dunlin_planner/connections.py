"""Asks the agents which connections live on their nodes."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from dunlin import subjects, wire
from dunlin.bus.base import Bus, BusError
from dunlin.events.rpc import Connections, ConnectionsRequest, Failure
from dunlin.model.addresses import IPAddress
from dunlin_planner.core.preview.preview import Connection

TIMEOUT_S = 5.0
AT_ONCE = 64
IPS_MAX = 10_000
"""More addresses than this are not named: all connections are asked for."""


@dataclass(slots=True)
class Live:
    """
    How many connections of each kind; one that two nodes know counts once.

    `silent`: node -> why it did not say. `truncated`: nodes that know of more.
    """

    counts: dict[Connection, int] = field(default_factory=dict)
    silent: dict[str, str] = field(default_factory=dict)
    truncated: list[str] = field(default_factory=list)


async def live_connections(bus: Bus, nodes: Iterable[str], ips: frozenset[IPAddress]) -> Live:
    """Of these nodes' Pods, those in which one of `ips` has a part."""
    named = tuple(sorted(ips, key=str)) if len(ips) <= IPS_MAX else ()
    data = wire.encode(ConnectionsRequest(ips=named))
    few = asyncio.Semaphore(AT_ONCE)

    async def ask(node: str) -> Connections | Failure:
        async with few:
            return await _ask(bus, node, data)

    names = sorted(nodes)
    replies: Mapping[str, Connections | Failure] = dict(
        zip(names, await asyncio.gather(*map(ask, names)), strict=True)
    )
    live = Live()
    for node, reply in replies.items():
        if isinstance(reply, Failure):
            live.silent[node] = reply.reason
            continue
        if reply.truncated:
            live.truncated.append(node)
        for item in reply.items:
            key = Connection(item.protocol, item.source, item.destination, item.port)
            live.counts[key] = max(live.counts.get(key, 0), item.count)
    return live


async def _ask(bus: Bus, node: str, data: bytes) -> Connections | Failure:
    subject = subjects.rpc("agent", "connections", node)
    try:
        reply = await bus.request(subject, data, timeout_s=TIMEOUT_S)
        answer: Connections | Failure = wire.decode(reply, Connections | Failure)  # type: ignore[arg-type]
    except (BusError, msgspec.DecodeError, ValueError) as error:
        return Failure(reason=str(error) or "no answer in time", retry=True)
    return answer
