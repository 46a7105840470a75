"""How each ServicePort spreads over its endpoints: measured against intended. Pure."""

from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from dunlin.events.intents import ServiceEndpoint, ServicePortIntent
from dunlin_metrics.meter import Target
from dunlin_metrics.samples import TRAFFIC, service_target
from dunlin_metrics.state import State, endpoint_text


class Share(NamedTuple):
    """
    One endpoint of one ServicePort.

    `intended`: its share of the new connections of its family, 0 … 1. `measured`: what it got since
    the endpoints changed last, None before the first connection. `recent`: of these connections.
    `connections`, `bytes` (both directions): totals that never fall.
    """

    target: Target
    endpoint: ServiceEndpoint
    intended: float
    measured: float | None
    recent: int
    connections: int
    bytes: int


def shares(state: State, intent: ServicePortIntent) -> Iterator[Share]:
    """Each endpoint, in the intent's order; the families are spread on their own."""
    service = service_target(intent)
    spread = state.spreads.get(service)
    recent = spread.connections if spread else {}
    count: dict[int, int] = defaultdict(int)
    total: dict[int, int] = defaultdict(int)
    for endpoint in intent.endpoints:
        count[endpoint.ip.version] += 1
        total[endpoint.ip.version] += recent.get(endpoint_text(endpoint.ip, endpoint.port), 0)
    for endpoint in intent.endpoints:
        text = endpoint_text(endpoint.ip, endpoint.port)
        sum_, got = total[endpoint.ip.version], recent.get(text, 0)
        known = state.meter.totals.get((*service, text))
        traffic = state.meter.totals.get((TRAFFIC, *service[1:], text))
        yield Share(
            (*service, text),
            endpoint,
            1 / count[endpoint.ip.version],
            got / sum_ if sum_ else None,
            got,
            known.values[0] if known else 0,
            traffic.values[0] if traffic else 0,
        )
