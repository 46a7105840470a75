"""The service scaffold: probes, token, errors, failing and stopping tasks."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from dunlin.bus.base import Bus
from dunlin.bus.memory import MemoryBus
from dunlin.service.app import ServiceApp, bind, read_token
from dunlin.service.settings import CommonSettings, SettingsError, load

SETTINGS = load(CommonSettings, environ={})
DEADLINE_S = 15
PROGRAM = """
import asyncio
from dunlin.service.app import run_service
from dunlin.service.settings import CommonSettings

async def setup(app):
    async def crash():
        raise ValueError("boom")
    async def stubborn():
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                pass
    if "{mode}" == "crash":
        app.task("crasher", crash())
    if "{mode}" == "stubborn":
        app.task("stubborn", stubborn())

run_service("test", CommonSettings, setup)
"""


@contextlib.asynccontextmanager
async def running(app: ServiceApp[CommonSettings], setup: object = None) -> AsyncIterator[str]:
    """The app in the background; its URL."""

    async def nothing(_app: ServiceApp[CommonSettings]) -> None:
        """No set-up."""

    task = asyncio.create_task(app.run(setup or nothing))  # type: ignore[arg-type]
    async with asyncio.timeout(DEADLINE_S):
        while not app.url and not task.done():
            await asyncio.sleep(0)
    try:
        yield app.url
    finally:
        app.stop()
        assert await asyncio.wait_for(task, DEADLINE_S) == 0


async def get(url: str, **headers: str) -> httpx.Response:
    """GET, once the server listens."""
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(retries=3)) as client:
        return await client.get(url, headers=headers)


async def test_probes_and_metrics() -> None:
    """healthz, readyz and metrics answer; readyz names what is missing and why, with 503."""
    app = ServiceApp("test", SETTINGS)
    reason: list[str | None] = ["still reading"]
    app.ready("facts", lambda: reason[0])

    def broken() -> str | None:
        raise RuntimeError("oops")

    async with running(app) as url:
        assert (await get(f"{url}/healthz")).json()["status"] == "ok"
        answer = await get(f"{url}/readyz")
        assert answer.status_code == 503
        assert answer.json()["checks"]["facts"] == {"ok": False, "reason": "still reading"}
        reason[0] = None
        async with asyncio.timeout(DEADLINE_S):
            while (await get(f"{url}/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
        app.metrics.bad_input("pod", "shape")
        text = (await get(f"{url}/metrics")).text
        assert 'dunlin_bad_input_total{kind="pod",reason="shape",service="test"} 1.0' in text
        assert "dunlin_event_loop_lag_seconds_bucket" in text
        assert "dunlin_build_info" in text
        app.live("broken", broken)
        answer = await get(f"{url}/healthz")
        assert answer.status_code == 503
        assert "oops" in answer.json()["checks"]["broken"]["reason"]


async def test_errors_are_json() -> None:
    """Unknown path, bad parameter and a bug: JSON with `error`, the parameter named."""
    app = ServiceApp("test", SETTINGS)

    @app.api.get("/v1/things")
    async def things(limit: int) -> int:
        return 1 // limit

    async with running(app) as url:
        answer = await get(f"{url}/v1/nothing")
        assert (answer.status_code, answer.json()) == (404, {"error": "Not Found"})
        answer = await get(f"{url}/v1/things?limit=many")
        assert answer.status_code == 422
        assert answer.json()["fields"][0]["field"] == "query.limit"
        assert "query.limit" in answer.json()["error"]
        answer = await get(f"{url}/v1/things?limit=0")
        assert (answer.status_code, answer.json()["error"]) == (
            500,
            "internal error: ZeroDivisionError",
        )
        assert (await get(f"{url}/v1/things?limit=1")).json() == 1
        assert "/v1/things" in (await get(f"{url}/openapi.json")).json()["paths"]


async def test_bearer_token(tmp_path: Path) -> None:
    """With a token everything but probes and metrics needs it."""
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    app = ServiceApp("test", replace(SETTINGS, api_token=str(file)))
    async with running(app) as url:
        for path in ("/healthz", "/readyz", "/metrics"):
            assert (await get(url + path)).status_code in (200, 503)
        for path in ("/docs", "/openapi.json", "/v1/x", "/healthz/", "//metrics"):
            assert (await get(url + path)).status_code == 401, path
            assert (await get(url + path, Authorization="Bearer wrong")).status_code == 401
        assert (await get(url + "/docs", Authorization="Bearer s3cret")).status_code == 200


def test_token_rules(tmp_path: Path) -> None:
    """No token beyond loopback, an unreadable and an empty file are refused, naming the setting."""
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(SettingsError, match="DUNLIN_API_HOST"):
            read_token(replace(SETTINGS, api_host=host))
    for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"):
        assert read_token(replace(SETTINGS, api_host=host)) is None
    with pytest.raises(SettingsError, match="DUNLIN_API_TOKEN"):
        read_token(replace(SETTINGS, api_token=str(tmp_path / "none")))
    empty = tmp_path / "empty"
    empty.touch()
    with pytest.raises(SettingsError, match="empty"):
        read_token(replace(SETTINGS, api_token=str(empty)))


def test_a_taken_port_is_named() -> None:
    """A port that somebody else has is an error that names it."""
    first = bind(SETTINGS)
    first.listen()
    port = first.getsockname()[1]
    with pytest.raises(SettingsError, match=str(port)):
        bind(replace(SETTINGS, api_port=port))
    first.close()


async def test_a_failing_task_fails_the_process() -> None:
    """The exit code is 1, other tasks are cancelled, closers run in reverse order."""
    app = ServiceApp("test", SETTINGS)
    seen: list[str] = []

    async def steady() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cancelled")

    async def crash() -> None:
        raise ValueError("boom")

    async def close(name: str) -> None:
        seen.append(name)

    async def setup(app: ServiceApp[CommonSettings]) -> None:
        app.on_stop("first", lambda: close("first"))
        app.on_stop("second", lambda: close("second"))
        app.task("steady", steady())
        await asyncio.sleep(0)
        app.task("crash", crash())

    assert await asyncio.wait_for(app.run(setup), DEADLINE_S) == 1
    assert seen == ["cancelled", "second", "first"]


@pytest.mark.parametrize("may_end", [True, False])
async def test_a_task_that_ends(may_end: bool) -> None:
    """A task that returns fails the process unless it may end."""
    app = ServiceApp("test", SETTINGS)

    async def short() -> None:
        """Return at once."""

    async def setup(app: ServiceApp[CommonSettings]) -> None:
        app.task("short", short(), may_end=may_end)
        for _ in range(5):
            await asyncio.sleep(0)
        app.stop()

    assert await asyncio.wait_for(app.run(setup), DEADLINE_S) == (0 if may_end else 1)


async def test_bus_of_a_test() -> None:
    """A given bus is used, gets its streams, shows in readyz and is closed at the end."""
    bus = MemoryBus()
    app = ServiceApp("test", SETTINGS, bus=bus)
    got: list[Bus] = []

    async def setup(app: ServiceApp[CommonSettings]) -> None:
        got.append(await app.connect_bus())

    async with running(app, setup) as url:
        async with asyncio.timeout(DEADLINE_S):
            while (await get(f"{url}/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
        bus.server.stop()
        assert "nats" in (await get(f"{url}/readyz")).json()["checks"]
        assert (await get(f"{url}/readyz")).status_code == 503
    assert got == [bus]
    assert not bus.connected


@pytest.mark.parametrize(
    ("mode", "send", "code"), [("calm", True, 0), ("crash", False, 1), ("stubborn", True, 1)]
)
def test_exit_codes_of_a_process(mode: str, send: bool, code: int) -> None:
    """SIGTERM: 0; a crashed task: 1; a task that will not stop: 1, within the time for stopping."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.replace("{mode}", mode), "--stop-timeout-s", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if '"set up"' in line:
                break
        if send:
            process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=DEADLINE_S)[1]
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    if mode == "crash":
        assert "boom" in rest
    if mode == "stubborn":
        assert "stubborn" in rest
