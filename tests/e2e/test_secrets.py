"""Secrets of a running system are in no log, on no command line and in no environment."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
import yaml

from dunlin.bus.permissions import permissions
from tests.e2e.lab_cluster import LabCluster

pytestmark = [pytest.mark.root, pytest.mark.ovs, pytest.mark.nats, pytest.mark.slow]


def secrets_of(run_dir: Path) -> dict[str, str]:
    """Services' NATS seeds, the administrator's password, tokens of REST and of the kubeconfig."""
    conf = (run_dir / "users.conf").read_text(encoding="utf-8")
    (password,) = set(re.findall(r'password: "([^"]+)"', conf))
    seeds = {
        f"seed {file.name}": file.read_text().strip() for file in (run_dir / "seeds").iterdir()
    }
    found = {
        **seeds,
        "nats": password,
        "api": (run_dir / "token").read_text(encoding="ascii").strip(),
    }
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
    """And environments, of the lab's processes: all carry its run directory in theirs."""
    found = {}
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if os.fsencode(str(run_dir)) in (process / "environ").read_bytes():
                for name in ("cmdline", "environ"):
                    text = (process / name).read_bytes().decode(errors="replace")
                    found[f"{name} of {process.name}"] = text
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def test_no_secret_is_logged(cluster: LabCluster) -> None:
    """After Pods, Services, a restart of each service; nor do command lines and environments."""
    namespace = cluster.namespace("secrets")
    cluster.pod(namespace, "web")
    cluster.service(namespace, "web", {"app": "web"})
    cluster.pods_ready(namespace, 1)
    for service in ("watcher", "ipam", "planner", "flowctl", "metrics"):
        cluster.kill(service)
        cluster.start(service)
    cluster.ready()
    run_dir = Path(cluster.status()["kubeconfig"]).parent
    # Of the watcher that was killed; the package `kubernetes` removes them at a normal end alone.
    assert any((run_dir / "tmp").iterdir())
    secrets = secrets_of(run_dir)
    assert len(secrets) >= 2 + len(permissions())
    assert all(len(secret) >= 16 for secret in secrets.values())
    logs = {
        path.name: path.read_text(errors="replace")
        for path in run_dir.glob("**/*.log")
        if path.is_file()
    }
    assert {"watcher@0.log", "flowctl@0.log"} <= logs.keys()
    assert all(logs[f"{service}@0.log"] for service in ("watcher", "planner", "flowctl"))
    processes = command_lines(run_dir)
    assert len(processes) > 10
    assert not leaks(secrets, {**logs, **processes})


def test_a_leak_is_found() -> None:
    """The oracle can fail."""
    assert leaks({"api": "s3cret"}, {"a.log": "token=s3cret", "b.log": ""}) == ["api in a.log"]
