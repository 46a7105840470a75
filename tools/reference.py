"""The reference pages and the deployment's files that follow from code."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from dunlin import subjects
from dunlin.bus.permissions import nats_authorization, permissions
from dunlin.service.settings import CommonSettings, describe, show
from dunlin_watcher.kinds import KINDS

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("watcher", "ipam", "planner", "flowctl", "agent", "metrics")
HEAD = "# {title}\n\nGenerated from code by `make docs`: do not edit.\n"


def _cell(text: object) -> str:
    """Text as it may stand in a table."""
    return " ".join(str(text).split()).replace("|", "\\|")


def _table(columns: tuple[str, ...], rows: list[tuple[object, ...]]) -> str:
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines)


def settings_of(service: str) -> type[CommonSettings]:
    """The settings class of a service."""
    config = importlib.import_module(f"dunlin_{service}.config")
    (found,) = {
        value
        for name, value in vars(config).items()
        if name.endswith("Settings") and value.__module__ == config.__name__
    }
    if not issubclass(found, CommonSettings):
        raise TypeError(f"{found} is no class of settings")
    cls: type[CommonSettings] = found
    return cls


def _setting_rows(cls: type[CommonSettings], known: set[str]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for item in describe(cls):
        if item.name in known:
            continue
        # These two are the machine's name.
        default = "(host name)" if item.name in {"replica", "node"} else show(item.default)
        bounds = [f">= {item.low:g}"] if item.low is not None else []
        bounds += [f"<= {item.high:g}"] if item.high is not None else []
        limits = " ".join([item.unit, ", ".join(bounds)]).strip()
        rows.append((f"`{item.flag}`", f"`{item.env}`", default, limits, item.doc))
    return rows


def settings_page() -> str:
    """docs/reference/settings.md."""
    columns = ("flag", "variable", "default", "unit, bounds", "meaning")
    common = {item.name for item in describe(CommonSettings)}
    parts = [
        HEAD.format(title="Settings"),
        "Flags come before variables, variables before defaults.",
    ]
    parts += ["\n## Every service\n", _table(columns, _setting_rows(CommonSettings, set()))]
    for service in SERVICES:
        rows = _setting_rows(settings_of(service), common)
        parts += [f"\n## {service}\n", _table(columns, rows)]
    return "\n".join(parts) + "\n"


def subjects_page() -> str:
    """docs/reference/subjects.md."""
    parts = [HEAD.format(title="Subjects"), "The grammar and the escaping: `dunlin/subjects.py`."]
    rows: list[tuple[object, ...]] = [
        (f"`{stream}`", ", ".join(f"`{each}`" for each in found))
        for stream, found in subjects.STREAM_SUBJECTS.items()
    ]
    parts += ["\n## Streams\n", _table(("stream", "subjects"), rows)]
    parts.append("\n## Who may publish what\n\nJetStream's own API left out; replies always may.\n")
    users: list[tuple[object, ...]] = []
    for user, allowed in permissions().items():
        mine = [each for each in allowed.publish if each.startswith(subjects.PREFIX)]
        served = [each for each in allowed.subscribe if each.startswith(subjects.PREFIX)]
        texts = (", ".join(f"`{each}`" for each in some) for some in (mine, served))
        users.append((user, *texts))
    parts.append(_table(("user", "publishes", "answers"), users))
    return "\n".join(parts) + "\n"


def _trees() -> Iterator[tuple[str, ast.Module]]:
    """(service, syntax tree) of every module; "every" for what all services have."""
    for service in ("every", *SERVICES):
        folder = ROOT / ("dunlin" if service == "every" else f"services/{service}")
        for path in sorted(folder.rglob("*.py")):
            yield service, ast.parse(path.read_text(encoding="utf-8"))


def _text(node: ast.AST | None) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def metrics_page() -> str:
    """docs/reference/metrics.md: constructors of series whose name and help are literals."""
    found: dict[tuple[str, str], str] = {}
    for service, tree in _trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and len(node.args) >= 2:
                name, meaning = _text(node.args[0]), _text(node.args[1])
                if name.startswith("dunlin_") and meaning.endswith("."):
                    found[service, name] = meaning
    rows: list[tuple[object, ...]] = [
        (service, f"`{name}`", meaning) for (service, name), meaning in sorted(found.items())
    ]
    note = "Names are without the endings `_total`, `_bucket`, `_sum` and `_count`."
    return "\n".join(
        [
            HEAD.format(title="Metrics"),
            note + "\n",
            _table(("service", "series", "meaning"), rows),
            "",
        ]
    )


def rest_page() -> str:
    """docs/reference/rest.md: routes, with the first line of what they say of themselves."""
    rows: set[tuple[object, ...]] = set()
    for service, tree in _trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            for mark in node.decorator_list:
                if not isinstance(mark, ast.Call) or not isinstance(mark.func, ast.Attribute):
                    continue
                verb, path = mark.func.attr.upper(), _text(mark.args[0]) if mark.args else ""
                if verb in {"GET", "POST", "PUT", "DELETE"} and path.startswith("/"):
                    doc = (ast.get_docstring(node) or "").split("\n\n")[0]
                    rows.add((service, verb, f"`{path}`", doc))
    table = _table(("service", "method", "path", "what"), sorted(rows, key=str))
    note = "Each service has its OpenAPI document at `/openapi.json`, to be read at `/docs`.\n"
    return "\n".join([HEAD.format(title="REST"), note, table, ""])


def cli_page() -> str:
    """docs/reference/cli.md."""
    import typer

    from dunlin.cli.main import app

    rows: list[tuple[object, ...]] = []

    def walk(command: Any, words: str) -> None:
        inner = getattr(command, "commands", None)
        if inner is None:
            options = [
                "/".join(each.opts) if each.param_type_name == "option" else each.name.upper()
                for each in command.params
                if "--help" not in each.opts
            ]
            text = (command.help or "").strip().split("\n")[0]
            rows.append((f"`{words}`", " ".join(f"`{each}`" for each in options), text))
            return
        for name, each in sorted(inner.items()):
            walk(each, f"{words} {name}")

    walk(typer.main.get_command(app), "dunlin")
    table = _table(("command", "options and arguments", "what"), rows)
    return "\n".join([HEAD.format(title="Command line"), table, ""])


def rbac() -> str:
    """k8s/base/rbac.yaml: a ServiceAccount each, and one role: the kinds that are followed."""
    groups: dict[str, set[str]] = {}
    for kind in KINDS.values():
        parts = kind.path.strip("/").split("/")
        groups.setdefault("" if parts[0] == "api" else parts[1], set()).add(parts[-1])
    rules = "".join(
        f'  - apiGroups: ["{group}"]\n'
        f"    resources: [{', '.join(sorted(found))}]\n"
        "    verbs: [list, watch]\n"
        for group, found in sorted(groups.items())
    )
    accounts = "".join(
        "---\napiVersion: v1\nkind: ServiceAccount\n"
        f"metadata: {{name: {name}}}\nautomountServiceAccountToken: false\n"
        for name in ("ipam", "planner", "flowctl", "metrics", "agent", "ovs", "nats")
    )
    return RBAC.format(rules=rules) + accounts


RBAC = """# Generated by `make docs` from the kinds that the watcher follows: do not edit.
# A ServiceAccount each. Only the watcher speaks to the Kubernetes API; it reads, and nothing else.
apiVersion: v1
kind: ServiceAccount
metadata: {{name: watcher}}
automountServiceAccountToken: true
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {{name: dunlin-watcher}}
rules:
{rules}---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {{name: dunlin-watcher}}
roleRef: {{apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: dunlin-watcher}}
subjects:
  - {{kind: ServiceAccount, name: watcher, namespace: dunlin-system}}
"""


def prometheus_rule() -> str:
    """k8s/base/observe/prometheusrule.yaml: the groups of rules.yaml for the operator."""
    text = (ROOT / "k8s/base/observe/rules.yaml").read_text(encoding="utf-8")
    groups = text[text.index("groups:") :].rstrip().split("\n")
    indented = "\n".join(f"  {line}" if line else line for line in groups)
    return (
        "# Generated by `make docs` from rules.yaml: do not edit.\n"
        "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n"
        "metadata:\n  name: dunlin\n  labels: {app.kubernetes.io/part-of: dunlin}\n"
        f"spec:\n{indented}\n"
    )


FILES: dict[str, Callable[[], str]] = {
    "docs/reference/settings.md": settings_page,
    "docs/reference/subjects.md": subjects_page,
    "docs/reference/metrics.md": metrics_page,
    "docs/reference/rest.md": rest_page,
    "docs/reference/cli.md": cli_page,
    "k8s/base/nats/permissions.conf": lambda: nats_authorization(permissions()),
    "k8s/base/rbac.yaml": rbac,
    "k8s/base/observe/prometheusrule.yaml": prometheus_rule,
}
