"""Starting the lab's processes and waiting for them; a death while we wait is told at once."""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx

from dunlin_lab import procs
from dunlin_lab.catalogue import Spec
from dunlin_lab.paths import LabPaths

READY_TIMEOUT_S = 60.0
ANSWER_TIMEOUT_S = 15.0
Report = Callable[[str], None]
"""Told what is being done, for a progress bar."""


class UpError(Exception):
    """The lab did not come up; the message says what is missing and where its log is."""


def start(paths: LabPaths, spec: Spec) -> None:
    """Start one process of the lab; it outlives this one."""
    env = {
        **spec.env,
        "DUNLIN_LAB_ROOT": str(paths.root),
        "PYTHONUNBUFFERED": "1",
        # Compiled once: a dozen processes start at the same time.
        "PYTHONDONTWRITEBYTECODE": "",
    }
    procs.Processes(paths).start(spec.process, spec.argv, env=env, netns_path=spec.netns)


@contextmanager
def deadline(timeout_s: float) -> Iterator[Callable[[], bool]]:
    """Yields a function that is true until the time is over, and waits a moment in between."""
    end = time.monotonic() + timeout_s

    def more() -> bool:
        time.sleep(0.05)
        return time.monotonic() < end

    yield more


def wait_answers(
    url: str, alive: Callable[[], None] = lambda: None, timeout_s: float = ANSWER_TIMEOUT_S
) -> str:
    """
    Until a service that has just been started serves its REST API.

    Being ready is another matter: what it needs may be down. "" or why it does not answer.
    `alive` raises when it is of no use to wait any longer (`check_alive`).
    """
    if not url:
        return ""
    reason = ""
    # The certificate of a lab's own API server is not the matter here.
    with (
        deadline(timeout_s) as more,
        httpx.Client(timeout=2.0, trust_env=False, verify=False) as http,  # noqa: S501 - own lab
    ):
        while more():
            alive()
            try:
                reason = _not_set_up(http.get(f"{url}/readyz"))
            except httpx.HTTPError as error:
                reason = f"{url} does not answer: {error}"
            if not reason:
                break
    return reason


def _not_set_up(answer: httpx.Response) -> str:
    """Why not all of a service's REST API is there yet; one that is not ready has all of it."""
    if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE:
        return ""
    try:
        return str(answer.json()["checks"]["setup"]["reason"])
    except (ValueError, KeyError, TypeError):
        # Not one of ours: the Kubernetes API.
        return answer.text


def wait_ready(
    paths: LabPaths,
    spec: Spec,
    timeout_s: float = READY_TIMEOUT_S,
    *,
    verify: ssl.SSLContext | bool = True,
) -> None:
    """
    Wait until a process answers its readiness probe.

    Raises:
        UpError: it ended, or is not ready in time; with what it says and the end of its log.
    """
    answer = "no answer"
    with (
        deadline(timeout_s) as more,
        httpx.Client(trust_env=False, timeout=2.0, verify=verify) as http,
    ):
        while more():
            check_alive(paths, spec.process)
            try:
                response = http.get(spec.health or f"{spec.url}/readyz")
            except httpx.HTTPError as error:
                answer = str(error)
                continue
            if response.status_code in (200, 401):
                return
            answer = response.text
    raise UpError(f"{spec.process} is not ready: {answer}\n{log_tail(paths, spec.process)}")


def check_alive(paths: LabPaths, process: str) -> None:
    """
    See that a process of the lab runs.

    Raises:
        UpError: it ended; with the end of its log.
    """
    record = procs.Processes(paths).find(process)
    if record is None or not procs.is_alive(record):
        raise UpError(f"{process} ended:\n{log_tail(paths, process)}")


def log_tail(paths: LabPaths, process: str, lines: int = 15) -> str:
    """The end of a process's log."""
    try:
        text = (paths.logs / f"{process}.log").read_text(errors="replace")
    except FileNotFoundError:
        return "(no log)"
    return "\n".join(text.splitlines()[-lines:])
