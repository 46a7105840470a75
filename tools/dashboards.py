"""Grafana's dashboards, from a table of panels: titles, units and queries in one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

WIDTH, HEIGHT = 12, 8
RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: `queries` are (expression, legend)."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"


BOARDS: dict[str, tuple[Panel, ...]] = {
    "Pods": (
        Panel(
            "Sent by Pod",
            "Bps",
            (
                (
                    (
                        "topk(20, sum by (namespace, pod) "
                        f"(rate(dunlin_pod_transmit_bytes_total{RATE})))"
                    ),
                    "{{namespace}}/{{pod}}",
                ),
            ),
        ),
        Panel(
            "Received by Pod",
            "Bps",
            (
                (
                    (
                        "topk(20, sum by (namespace, pod) "
                        f"(rate(dunlin_pod_receive_bytes_total{RATE})))"
                    ),
                    "{{namespace}}/{{pod}}",
                ),
            ),
        ),
        Panel(
            "Packets dropped at Pods",
            "pps",
            (
                (
                    f"sum by (namespace, pod) (rate(dunlin_pod_receive_drops_total{RATE}))",
                    "to {{pod}}",
                ),
                (
                    f"sum by (namespace, pod) (rate(dunlin_pod_transmit_drops_total{RATE}))",
                    "from {{pod}}",
                ),
            ),
        ),
        Panel(
            "Pods of each node",
            "short",
            (("sum by (instance) (dunlin_agent_attachments)", "{{instance}}"),),
        ),
    ),
    "Nodes": (
        Panel(
            "Traffic between nodes",
            "Bps",
            (
                (
                    f"sum by (source, destination) (rate(dunlin_node_traffic_bytes_total{RATE}))",
                    "{{source}} to {{destination}}",
                ),
            ),
        ),
        Panel(
            "Packets between nodes",
            "pps",
            (
                (
                    f"sum by (source, destination) (rate(dunlin_node_traffic_packets_total{RATE}))",
                    "{{source}} to {{destination}}",
                ),
            ),
        ),
        Panel("Flows of each switch", "short", (("dunlin_switch_flows", "{{node}}"),)),
        Panel("Groups of each switch", "short", (("dunlin_switch_groups", "{{node}}"),)),
    ),
    "Services": (
        Panel(
            "New connections by endpoint",
            "cps",
            (
                (
                    (
                        "sum by (namespace, service, endpoint) "
                        f"(rate(dunlin_service_endpoint_connections_total{RATE}))"
                    ),
                    "{{namespace}}/{{service}} {{endpoint}}",
                ),
            ),
        ),
        Panel(
            "Traffic of each endpoint",
            "Bps",
            (
                (
                    (
                        "sum by (namespace, service, endpoint) "
                        f"(rate(dunlin_service_endpoint_bytes_total{RATE}))"
                    ),
                    "{{namespace}}/{{service}} {{endpoint}}",
                ),
            ),
        ),
        Panel(
            "Share of each endpoint: intended and measured",
            "percentunit",
            (("dunlin_service_endpoint_share", "{{service}} {{endpoint}} {{kind}}"),),
            kind="bargauge",
        ),
    ),
    "Control plane": (
        Panel("Intents that switches lack", "short", (("dunlin_switch_pending", "{{node}}"),)),
        Panel("Intents that switches refuse", "short", (("dunlin_switch_errors", "{{node}}"),)),
        Panel(
            "From a change to its flows, 99th percentile",
            "s",
            (
                (
                    (
                        "histogram_quantile(0.99, sum by (le) "
                        f"(rate(dunlin_programming_seconds_bucket{RATE})))"
                    ),
                    "p99",
                ),
            ),
        ),
        Panel(
            "CNI ADD, 99th percentile",
            "s",
            (
                (
                    (
                        "histogram_quantile(0.99, sum by (le, command) "
                        f"(rate(dunlin_cni_duration_seconds_bucket{RATE})))"
                    ),
                    "{{command}}",
                ),
            ),
        ),
        Panel("Watchers that lead", "short", (("sum(dunlin_watcher_leading)", "leading"),)),
        Panel(
            "Addresses of each pool",
            "short",
            (("sum by (pool, state) (dunlin_ipam_pool_addresses)", "{{pool}} {{state}}"),),
        ),
        Panel(
            "Input that could not be used",
            "short",
            (
                (
                    f"sum by (job, kind, reason) (rate(dunlin_bad_input_total{RATE}))",
                    "{{job}} {{kind}} {{reason}}",
                ),
            ),
        ),
        Panel(
            "Lag of the event loops, 99th percentile",
            "s",
            (
                (
                    (
                        "histogram_quantile(0.99, sum by (le, instance) "
                        f"(rate(dunlin_event_loop_lag_seconds_bucket{RATE})))"
                    ),
                    "{{instance}}",
                ),
            ),
        ),
    ),
}


def board(title: str) -> str:
    """The JSON that Grafana reads."""
    panels = [
        {
            "id": number + 1,
            "title": panel.title,
            "type": panel.kind,
            "datasource": {"type": "prometheus", "uid": "prometheus"},
            "gridPos": {
                "x": number % 2 * WIDTH,
                "y": number // 2 * HEIGHT,
                "w": WIDTH,
                "h": HEIGHT,
            },
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": [
                {"refId": chr(ord("A") + index), "expr": expr, "legendFormat": legend}
                for index, (expr, legend) in enumerate(panel.queries)
            ],
        }
        for number, panel in enumerate(BOARDS[title])
    ]
    uid = "dunlin-" + title.lower().replace(" ", "-")
    document = {
        "uid": uid,
        "title": f"Dunlin: {title}",
        "tags": ["dunlin"],
        "schemaVersion": 39,
        "time": {"from": "now-30m", "to": "now"},
        "refresh": "10s",
        "panels": panels,
    }
    return json.dumps(document, indent=1) + "\n"


def path_of(title: str) -> str:
    """Where a board is kept."""
    return f"compose/grafana/dashboards/{title.lower().replace(' ', '-')}.json"


FILES: dict[str, Callable[[], str]] = {path_of(title): partial(board, title) for title in BOARDS}
