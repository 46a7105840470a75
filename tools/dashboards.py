"""Grafana's dashboards, from a table of panels: titles, units and queries in one place."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

WIDTH, HEIGHT = 12, 8
RATE = "[$__rate_interval]"


@dataclass(frozen=True, slots=True)
class Panel:
    """One graph: `queries` are (expression, legend)."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    kind: str = "timeseries"
    table: bool = False
    """The newest values as a table, for panels that draw no time."""
    width: int = WIDTH
    height: int = HEIGHT
    rename: tuple[tuple[str, str], ...] = ()
    """Columns of the table by their new names."""


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
            "Packets by Pod",
            "pps",
            (
                (
                    (
                        "topk(20, sum by (namespace, pod) "
                        f"(rate(dunlin_pod_transmit_packets_total{RATE})))"
                    ),
                    "from {{namespace}}/{{pod}}",
                ),
            ),
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
    ),
    "Switches": (
        Panel("Flows of each switch", "short", (("dunlin_switch_flows", "{{node}}"),)),
        Panel("Groups of each switch", "short", (("dunlin_switch_groups", "{{node}}"),)),
        Panel(
            "Sessions with flowctl",
            "short",
            (("dunlin_switch_connected", "{{node}}"),),
        ),
        Panel(
            "Switches of each flowctl",
            "short",
            (("sum by (instance, state) (dunlin_flowctl_switches)", "{{instance}} {{state}}"),),
        ),
    ),
    "Topology": (
        Panel(
            "Nodes, and the traffic between them",
            "Bps",
            (
                ('label_replace(dunlin_switch_connected, "id", "$1", "node", "(.*)")', "nodes"),
                (
                    (
                        "label_replace(label_join(sum by (source, destination) "
                        f'(rate(dunlin_node_traffic_bytes_total{RATE})), "id", " to ", "source", '
                        '"destination"), "target", "$1", "destination", "(.*)")'
                    ),
                    "edges",
                ),
            ),
            kind="nodeGraph",
            table=True,
            width=2 * WIDTH,
            height=2 * HEIGHT,
            rename=(("node", "title"), ("Value #A", "mainstat"), ("Value #B", "mainstat")),
        ),
        Panel(
            "Pods of each node",
            "short",
            (("sum by (instance) (dunlin_agent_attachments)", "{{instance}}"),),
        ),
        Panel(
            "Endpoints of each Service",
            "short",
            (
                (
                    (
                        "count by (namespace, service) "
                        '(dunlin_service_endpoint_share{kind="intended"})'
                    ),
                    "{{namespace}}/{{service}}",
                ),
            ),
        ),
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
    "Policies": (
        Panel(
            "Denied packets: isolated, and no rule allowed them",
            "pps",
            (
                (
                    (
                        "topk(20, sum by (namespace, policies, direction) "
                        f"(rate(dunlin_networkpolicy_denied_packets_total{RATE})))"
                    ),
                    "{{namespace}}: {{policies}} {{direction}}",
                ),
            ),
        ),
        Panel(
            "Connections allowed by rule",
            "cps",
            (
                (
                    (
                        "topk(20, sum by (namespace, policy, direction, rule) "
                        f"(rate(dunlin_networkpolicy_rule_connections_total{RATE})))"
                    ),
                    "{{namespace}}/{{policy}} {{direction}} {{rule}}",
                ),
            ),
        ),
        Panel(
            "Traffic allowed by rule",
            "Bps",
            (
                (
                    (
                        "topk(20, sum by (namespace, policy, direction, rule) "
                        f'(rate(dunlin_networkpolicy_rule_bytes_total{{action="Accept"}}{RATE})))'
                    ),
                    "{{namespace}}/{{policy}} {{direction}} {{rule}}",
                ),
            ),
        ),
        Panel(
            "Rules that were never used",
            "short",
            (
                (
                    (
                        'count(dunlin_networkpolicy_rule_packets_total{action="Accept"} == 0) '
                        "or vector(0)"
                    ),
                    "rules",
                ),
            ),
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


def targets(panel: Panel) -> list[dict[str, object]]:
    """The queries of a panel."""
    made: list[dict[str, object]] = []
    for index, (expr, legend) in enumerate(panel.queries):
        target: dict[str, object] = {"refId": chr(ord("A") + index), "expr": expr}
        if panel.table:
            target |= {"format": "table", "instant": True, "range": False}
        else:
            target["legendFormat"] = legend
        made.append(target)
    return made


def places(panels: tuple[Panel, ...]) -> list[dict[str, int]]:
    """Where each panel stands: from left to right, then in the next row."""
    found, x, y = [], 0, 0
    for panel in panels:
        if x + panel.width > 2 * WIDTH:
            x, y = 0, y + HEIGHT
        found.append({"x": x, "y": y, "w": panel.width, "h": panel.height})
        x += panel.width
        if x == 2 * WIDTH and panel.height > HEIGHT:
            x, y = 0, y + panel.height
    return found


def board(title: str) -> str:
    """The JSON that Grafana reads."""
    panels = []
    for number, (panel, place) in enumerate(
        zip(BOARDS[title], places(BOARDS[title]), strict=True), start=1
    ):
        made: dict[str, object] = {
            "id": number,
            "title": panel.title,
            "type": panel.kind,
            "datasource": {"type": "prometheus", "uid": "prometheus"},
            "gridPos": place,
            "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
            "targets": targets(panel),
        }
        if panel.rename:
            options = {"renameByName": dict(panel.rename)}
            made["transformations"] = [{"id": "organize", "options": options}]
        panels.append(made)
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
    return f"k8s/base/observe/dashboards/{title.lower().replace(' ', '-')}.json"


def kustomization() -> str:
    """Base of observe/: a board that is new is in it."""
    files = "\n".join(f"      - dashboards/{Path(path_of(title)).name}" for title in sorted(BOARDS))
    return f"{HEAD}{files}\n{OPTIONS}"


HEAD = """# Generated by `make docs` from tools/dashboards.py: do not edit.
# What the Prometheus operator reads (its kinds must exist), and dashboards for Grafana's sidecar.
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: dunlin-system
resources: [servicemonitor.yaml, prometheusrule.yaml]
configMapGenerator:
  - name: dunlin-dashboards
    files:
"""
OPTIONS = """    options:
      disableNameSuffixHash: true
      labels: {grafana_dashboard: "1", app.kubernetes.io/part-of: dunlin}
"""

BOARD_FILES: dict[str, Callable[[], str]] = {
    path_of(title): partial(board, title) for title in BOARDS
}
FILES = {**BOARD_FILES, "k8s/base/observe/kustomization.yaml": kustomization}
