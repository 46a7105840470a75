"""The Kubernetes API as the lab's own commands need it: a kubeconfig and plain HTTP."""

from __future__ import annotations

from pathlib import Path

import httpx

from dunlin_lab.kubeconfig import KubeconfigError, access

__all__ = ["KubeconfigError", "client"]


def client(kubeconfig: Path, timeout_s: float = 10.0) -> httpx.Client:
    """
    An HTTP client for the current context of a kubeconfig.

    Raises:
        KubeconfigError: the file cannot be used; the message says why.
    """
    found = access(kubeconfig)
    return httpx.Client(
        base_url=found.server,
        auth=found.auth,
        verify=found.verify,
        timeout=timeout_s,
        trust_env=False,
    )
