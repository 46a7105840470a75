"""
What each endpoint of each ServicePort sends and receives, counted by the switch alone.

Established connections pass load balancing by, so the buckets count new ones only. But ct_label
says of each connection which endpoint it has, and one flow for each endpoint, which every tracked
packet meets before ConntrackState, counts its packets in both directions. ADR 0026.
"""

import hashlib

from dunlin.events.intents import ServiceEndpoint
from dunlin.openflow.flow import SetField, match
from dunlin.pipeline.base import FlowMaker
from dunlin.pipeline.families import FAMILIES
from dunlin.pipeline.layout import (
    ENDPOINT_LABEL_BITS,
    ENDPOINT_LABEL_SHIFT,
    Priority,
    Table,
)

_MASK = ((1 << ENDPOINT_LABEL_BITS) - 1) << ENDPOINT_LABEL_SHIFT


def endpoint_number(service_key: str, endpoint: ServiceEndpoint) -> int:
    """
    What stands for one endpoint of one ServicePort in ct_label: 64 bits, never 0.

    A hash: among 10,000,000 endpoints two agree in one of 370,000 clusters, and then the later one
    is counted with the other. `service_key`: as in ServicePortIntent.
    """
    where = endpoint.ip.packed + endpoint.port.to_bytes(2, "big")
    digest = hashlib.sha256(b"%s|%s" % (service_key.encode(), where)).digest()
    return int.from_bytes(digest[:8], "big") or 1


def note_endpoint(number: int) -> SetField:
    """For `exec` of the ct() that commits a connection to this endpoint."""
    return SetField("ct_label", number << ENDPOINT_LABEL_SHIFT, _MASK)


def number_in_label(label: int) -> int:
    """The endpoint's number in a ct_label, 0: none."""
    return label >> ENDPOINT_LABEL_SHIFT & (_MASK >> ENDPOINT_LABEL_SHIFT)


def count_endpoint(make: FlowMaker, number: int) -> None:
    """The flow whose counters are this endpoint's traffic with clients of the switch."""
    ours = match(ct_label=(number << ENDPOINT_LABEL_SHIFT, _MASK))
    make.add(Table.SERVICE_TRAFFIC, Priority.EXACT, ours, (), Table.CONNTRACK_STATE)


def count_nobody(make: FlowMaker) -> None:
    """What is of no Service, or of one that is not counted."""
    for family in FAMILIES:
        make.add(Table.SERVICE_TRAFFIC, Priority.MISS, family.any, (), Table.CONNTRACK_STATE)
