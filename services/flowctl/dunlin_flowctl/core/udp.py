"""
Which connections of a UDP Service are stale after a change: pure.

Only exactly the entries that a change concerns are named; TCP none.
"""

from collections.abc import Iterable

from dunlin.openflow.codec import CtFlush, CtTuple
from dunlin.openflow.fields import IP_UDP
from dunlin.pipeline.layout import Zone
from dunlin.pipeline.udp import Address, UdpService


def stale(old: UdpService, new: UdpService) -> tuple[CtFlush, ...]:
    """
    What to remove from conntrack once the switch does as `new` says, in a fixed order.

    A frontend that is gone (or a family without endpoints): all that went there. An endpoint that
    is gone: what was translated to it. A frontend that begins to have endpoints: what
    passed untranslated.
    """
    found: list[CtFlush] = []
    for ip, port in _sorted(old.frontends):
        before, after = old.answering(ip.version), new.answering(ip.version)
        if not before:
            continue
        if (ip, port) not in new.frontends or not after:
            found.append(_flush(CtTuple(dst=ip, dst_port=port)))
            continue
        for endpoint, number in _sorted(before - after):
            reply = CtTuple(src=endpoint, src_port=number)
            found.append(_flush(CtTuple(dst=ip, dst_port=port), reply))
    for ip, port in _sorted(new.frontends):
        begins = (ip, port) not in old.frontends or not old.answering(ip.version)
        if begins and new.answering(ip.version):
            untranslated = CtTuple(src=ip, src_port=port)
            found.append(_flush(CtTuple(dst=ip, dst_port=port), untranslated))
    return tuple(found)


def _flush(orig: CtTuple, reply: CtTuple | None = None) -> CtFlush:
    return CtFlush(int(Zone.MAIN), IP_UDP, orig, reply or CtTuple())


def _sorted(addresses: Iterable[Address]) -> list[Address]:
    return sorted(addresses, key=lambda a: (a[0].version, int(a[0]), a[1]))
