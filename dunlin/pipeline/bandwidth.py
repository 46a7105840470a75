"""
What a Pod may send and receive a second: meters of its node's switch. ADR 0042.

A meter is a bucket of `burst` that fills with `rate`; a packet for which there is not enough in it
is dropped. A packet counts as it is: one that userspace-tso has not cut yet counts as a whole, so a
bucket that cannot hold two of the largest would let some never pass.
"""

from dunlin.events.intents import EndpointIntent
from dunlin.openflow.flow import Action, Meter, MeterAction
from dunlin.pipeline.layout import EGRESS_METERS, INGRESS_METERS

BURST_S = 0.5
"""What the rate gives in so long may come at once: with less of it TCP gets half of its limit."""
BURST_MIN_KBIT = 1100
"""Two packets of 64 KiB, with their headers."""
_KBPS_MAX = 0xFFFFFFFF
"""4.3 Tbit/s, the most that OpenFlow can say: beyond that there is no interface to limit."""


def egress(intent: EndpointIntent) -> tuple[Action, ...]:
    """First of the actions for what the Pod sends."""
    return (MeterAction(EGRESS_METERS | intent.ofport),) if intent.egress_bps else ()


def ingress(intent: EndpointIntent) -> tuple[Action, ...]:
    """First of the actions for what goes to the Pod."""
    return (MeterAction(INGRESS_METERS | intent.ofport),) if intent.ingress_bps else ()


def meters(intent: EndpointIntent) -> tuple[Meter, ...]:
    """What these actions name."""
    found = []
    if intent.egress_bps:
        found.append(_meter(EGRESS_METERS | intent.ofport, intent.egress_bps))
    if intent.ingress_bps:
        found.append(_meter(INGRESS_METERS | intent.ofport, intent.ingress_bps))
    return tuple(found)


def _meter(meter_id: int, bps: int) -> Meter:
    rate = min(max(1, bps // 1000), _KBPS_MAX)
    return Meter(meter_id, rate, max(int(rate * BURST_S), BURST_MIN_KBIT), "kbps")


def direction_of(meter_id: int) -> str:
    """As the Pod sees it: egress or ingress; "": no meter of a Pod."""
    return {EGRESS_METERS: "egress", INGRESS_METERS: "ingress"}.get(meter_id & ~0xFFFF, "")
