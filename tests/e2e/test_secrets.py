"""Secrets of a running system are in no log and on no command line."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from tests.e2e.lab_cluster import LabCluster

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]


def secrets_of(run_dir: Path) -> dict[str, str]:
    """The NATS password, the token of the REST APIs, the tokens of the kubeconfig."""
    conf = (run_dir / "nats-0.conf").read_text(encoding="utf-8")
    (password,) = set(re.findall(r'password: "([^"]+)"', conf))
    found = {"nats": password, "api": (run_dir / "token").read_text(encoding="ascii").strip()}
    users = yaml.safe_load((run_dir / "kubeconfig").read_text(encoding="utf-8"))["users"]
    found |= {f"user {u['name']}": u["user"]["token"] for u in users if u["user"].get("token")}
    return found


def leaks(secrets: dict[str, str], texts: dict[str, str]) -> list[str]:
    """Where a secret is, by name: never the secret itself."""
    return [
        f"{name} in {where}"
        for where, text in texts.items()
        for name, secret in secrets.items()
        if secret in text
    ]


def command_lines(run_dir: Path) -> dict[str, str]:
    """Of the lab's processes, which carry its run directory in their environment."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if os.fsencode(str(run_dir)) in (process / "environ").read_bytes():
                text = (process / "cmdline").read_bytes().decode(errors="replace")
                found[f"process {process.name}"] = text
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def test_no_secret_is_logged(cluster: LabCluster) -> None:
    """After Pods, Services and a restart of each service: logs and command lines hold none."""
    namespace = cluster.namespace("secrets")
    cluster.pod(namespace, "web")
    cluster.service(namespace, "web", {"app": "web"})
    cluster.pods_ready(namespace, 1)
    for service in ("watcher", "ipam", "planner", "flowctl", "metrics"):
        cluster.kill(service)
        cluster.start(service)
    cluster.ready()
    run_dir = Path(cluster.status()["kubeconfig"]).parent
    secrets = secrets_of(run_dir)
    assert len(secrets) >= 2
    assert all(len(secret) >= 16 for secret in secrets.values())
    logs = {
        path.name: path.read_text(errors="replace")
        for path in run_dir.glob("**/*.log")
        if path.is_file()
    }
    assert {"watcher@0.log", "flowctl@0.log"} <= logs.keys()
    assert all(logs[f"{service}@0.log"] for service in ("watcher", "planner", "flowctl"))
    processes = command_lines(run_dir)
    assert len(processes) > 5
    assert not leaks(secrets, {**logs, **processes})


def test_a_leak_is_found() -> None:
    """The oracle can fail."""
    assert leaks({"api": "s3cret"}, {"a.log": "token=s3cret", "b.log": ""}) == ["api in a.log"]
