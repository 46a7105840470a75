"""
Which connections of a UDP Service are stale after a change: pure.

UDP has no end that conntrack could see: an entry lives as long as its client keeps sending, also
when its endpoint is gone. Only exactly the entries that a change concerns are named; TCP none.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from dunlin.events.facts import Protocol
from dunlin.events.intents import LocalServiceIntent, ServiceEndpoint, ServicePortIntent
from dunlin.model.addresses import IPAddress
from dunlin.openflow.codec import CtFlush, CtTuple
from dunlin.openflow.fields import IP_UDP
from dunlin.pipeline.layout import Zone

Address = tuple[IPAddress, int]
"""Address and port."""


@dataclass(frozen=True, slots=True)
class UdpService:
    """Where a UDP ServicePort is asked for on one node, and who may answer there."""

    frontends: frozenset[Address] = field(default_factory=frozenset)
    endpoints: frozenset[Address] = field(default_factory=frozenset)


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


def _others(
    service: ServicePortIntent, local: LocalServiceIntent | None
) -> Iterator[ServiceEndpoint]:
    for family in service.families:
        for zone in family.zones:
            yield from zone.endpoints
    for own in local.families if local is not None else ():
        yield from own.local
        yield from own.node


def stale(old: UdpService, new: UdpService) -> tuple[CtFlush, ...]:
    """
    What to remove from conntrack once the switch does as `new` says, in a fixed order.

    A frontend that is gone (or a family without endpoints): all that went there. An endpoint that
    is gone: what was translated to it. A frontend that begins to have endpoints: what
    passed untranslated.
    """
    found: list[CtFlush] = []
    for ip, port in _sorted(old.frontends):
        before, after = _family(old, ip), _family(new, ip)
        if not before:
            continue
        if (ip, port) not in new.frontends or not after:
            found.append(_flush(CtTuple(dst=ip, dst_port=port)))
            continue
        for endpoint, number in _sorted(before - after):
            reply = CtTuple(src=endpoint, src_port=number)
            found.append(_flush(CtTuple(dst=ip, dst_port=port), reply))
    for ip, port in _sorted(new.frontends):
        begins = (ip, port) not in old.frontends or not _family(old, ip)
        if begins and _family(new, ip):
            untranslated = CtTuple(src=ip, src_port=port)
            found.append(_flush(CtTuple(dst=ip, dst_port=port), untranslated))
    return tuple(found)


def _family(service: UdpService, ip: IPAddress) -> frozenset[Address]:
    return frozenset(e for e in service.endpoints if e[0].version == ip.version)


def _flush(orig: CtTuple, reply: CtTuple | None = None) -> CtFlush:
    return CtFlush(int(Zone.MAIN), IP_UDP, orig, reply or CtTuple())


def _sorted(addresses: Iterable[Address]) -> list[Address]:
    return sorted(addresses, key=lambda a: (a[0].version, int(a[0]), a[1]))
