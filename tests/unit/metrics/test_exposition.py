"""The Prometheus series."""

from ipaddress import IPv4Address

from prometheus_client import CollectorRegistry, generate_latest

from dunlin.events.intents import ServiceEndpoint
from dunlin_metrics.counters import Bandwidth
from dunlin_metrics.exposition import StateCollector
from dunlin_metrics.state import State
from tests.unit.metrics.build import flow, group, poll, port, started, traffic


def lines(state: State, policy_series_max: int = 100) -> set[str]:
    """All samples as text."""
    registry = CollectorRegistry()
    registry.register(StateCollector(state, policy_series_max))
    text = generate_latest(registry).decode()
    return {line for line in text.splitlines() if not line.startswith("#")}


def test_series() -> None:
    """Each of the promised series, with its labels and its value."""
    state = started()
    empty = group(("10.0.1.11:8080", 0), ("10.0.1.12:8080", 0), ("10.0.1.12:8080", 0))
    poll(state, 1, empty)
    used = group(("10.0.1.11:8080", 3), ("10.0.1.12:8080", 0), ("10.0.1.12:8080", 1))
    there = ServiceEndpoint(ip=IPv4Address("10.0.1.11"), port=8080)
    counted = traffic(there, 10)
    poll(state, 2, port("p11", received=7, sent=3), flow("n2", 5), used, counted)
    pod = '{namespace="default",node="n1",pod="p11"}'
    endpoint = 'endpoint="10.0.1.11:8080",%snamespace="default",port="http",service="web"'
    expected = {
        f"dunlin_pod_receive_bytes_total{pod} 700.0",
        f"dunlin_pod_receive_packets_total{pod} 7.0",
        f"dunlin_pod_receive_drops_total{pod} 1.0",
        f"dunlin_pod_transmit_bytes_total{pod} 300.0",
        f"dunlin_pod_transmit_packets_total{pod} 3.0",
        f"dunlin_pod_transmit_drops_total{pod} 2.0",
        'dunlin_node_traffic_bytes_total{destination="n2",source="n1"} 500.0',
        'dunlin_node_traffic_packets_total{destination="n2",source="n1"} 5.0',
        f"dunlin_service_endpoint_connections_total{{{endpoint % ''}}} 3.0",
        f"dunlin_service_endpoint_bytes_total{{{endpoint % ''}}} 1000.0",
        f"dunlin_service_endpoint_packets_total{{{endpoint % ''}}} 10.0",
        "dunlin_service_endpoint_share{" + endpoint % 'kind="measured",' + "} 0.75",
        "dunlin_service_endpoint_share{" + endpoint % 'kind="intended",' + "} 0.5",
        'dunlin_switch_flows{node="n1"} 100.0',
        'dunlin_switch_groups{node="n1"} 2.0',
        'dunlin_switch_connected{node="n2"} 0.0',
    }
    assert expected <= lines(state)


def test_what_a_limit_dropped() -> None:
    """By Pod and direction, of all its interfaces; also when the meter is made anew."""
    state = started()
    intent = "n1/endpoint/default/p11/eth0"
    for number, packets in enumerate((2, 5, 1), 1):
        poll(state, number, Bandwidth(intent, "egress", packets, packets * 100))
    labels = '{direction="egress",namespace="default",pod="p11"}'
    assert {
        f"dunlin_pod_bandwidth_dropped_packets_total{labels} 6.0",
        f"dunlin_pod_bandwidth_dropped_bytes_total{labels} 600.0",
    } <= lines(state)


def test_nothing_yet() -> None:
    """An empty state can be scraped."""
    assert lines(State()) == set()
