"""Identifiers whose type carries their meaning."""

from typing import NewType

NodeName = NewType("NodeName", str)
"""`metadata.name` of a Kubernetes Node; may hold dots."""

Uid = NewType("Uid", str)
"""`metadata.uid` of a Kubernetes object."""

IntentId = NewType("IntentId", str)
"""`<scope>/<kind>/<key>`, see `dunlin.events.intent_id`."""

Dpid = NewType("Dpid", int)
"""OpenFlow datapath id, 64 bit; printed as 16 hex digits by `format_dpid`."""

OfPort = NewType("OfPort", int)
"""OpenFlow port number of one bridge; 0 means "no such port here"."""

Revision = NewType("Revision", int)
"""Sequence of a message in the intent stream; 0 is before the first."""


def format_dpid(dpid: int) -> str:
    """16 hex digits, as ovs-vsctl's other_config:datapath-id takes them."""
    return f"{dpid:016x}"
