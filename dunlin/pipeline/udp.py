"""
A UDP ServicePort or hostPort as conntrack meets it: where it is asked for, who may answer. Pure.

UDP has no end that conntrack could see: an entry lives as long as its client keeps sending, also
when its endpoint is gone. flowctl removes what a change makes stale, the agent what it finds so.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dunlin.events.facts import Protocol
from dunlin.events.intents import (
    HostPortIntent,
    LocalServiceIntent,
    ServiceEndpoint,
    ServicePortIntent,
)
from dunlin.model.addresses import IPAddress
from dunlin.pipeline.host_port import host_port_ips

Address = tuple[IPAddress, int]
"""Address and port."""


@dataclass(frozen=True, slots=True)
class UdpService:
    """Where a UDP ServicePort is asked for on one node, and who may answer there."""

    frontends: frozenset[Address] = field(default_factory=frozenset)
    endpoints: frozenset[Address] = field(default_factory=frozenset)

    def answering(self, version: int) -> frozenset[Address]:
        """Endpoints of one family."""
        return frozenset(e for e in self.endpoints if e[0].version == version)


NOTHING = UdpService()


def udp_service(
    service: ServicePortIntent | None,
    local: LocalServiceIntent | None = None,
    node_ips: Iterable[IPAddress] = (),
) -> UdpService:
    """
    A ServicePort as UDP knows it; nothing for other protocols and for none.

    `local`: what the node has of its own of it. `node_ips`: where the node serves NodePorts.
    """
    if service is None or service.protocol is not Protocol.UDP:
        return NOTHING
    frontends = {(address.ip, service.port) for address in service.addresses}
    frontends |= {(address.ip, service.port) for address in service.external}
    if service.node_port:
        frontends |= {(ip, service.node_port) for ip in node_ips}
    endpoints = {(e.ip, e.port) for e in (*service.endpoints, *_others(service, local))}
    return UdpService(frozenset(frontends), frozenset(endpoints))


def udp_host_port(intent: HostPortIntent | None, own: Iterable[IPAddress]) -> UdpService:
    """As `udp_service`, of a hostPort; `own`: every address of its node."""
    if intent is None or intent.protocol is not Protocol.UDP:
        return NOTHING
    frontends = frozenset((ip, intent.port) for ip in host_port_ips(intent, own))
    return UdpService(frontends, frozenset((e.ip, e.port) for e in intent.endpoints))


def _others(
    service: ServicePortIntent, local: LocalServiceIntent | None
) -> Iterator[ServiceEndpoint]:
    for family in service.families:
        for zone in family.zones:
            yield from zone.endpoints
    for own in local.families if local is not None else ():
        yield from own.local
        yield from own.node
