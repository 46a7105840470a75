"""
One service process: HTTP, bus, tasks, signals.

    async def setup(app: ServiceApp[IpamSettings]) -> None:
        bus = await app.connect_bus()
        shell = Shell(bus, app.settings)
        app.api.include_router(rest.router(shell))
        app.ready("state", lambda: None if shell.caught_up else "still reading the facts")
        app.task("shell", shell.run())

    def main() -> None:
        run_service("ipam", IpamSettings, setup)

HTTP answers while `setup` still runs (readyz says so). A task that fails ends the process with
exit code 1; SIGTERM and SIGINT end it with 0.
"""

import asyncio
import contextlib
import gc
import ipaddress
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
import uvicorn
import uvloop

from dunlin import bus as bus_package
from dunlin.bus.base import Bus
from dunlin.service import http, logging
from dunlin.service.metrics import Metrics
from dunlin.service.settings import CommonSettings, SettingsError, load_or_exit
from dunlin.service.supervisor import Supervisor

S = TypeVar("S", bound=CommonSettings)
log = structlog.get_logger(__name__)

LAG_PERIOD_S = 0.1
LAG_WARNING_S = 0.5
HTTP_STOP_S = 1.5


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: ours stop the whole process."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone."""
        yield


class ServiceApp(Generic[S]):
    """What a service's `setup` gets; everything it registers is run and stopped by `run`."""

    def __init__(self, name: str, settings: S, *, title: str = "", bus: Bus | None = None) -> None:
        """`bus`: use this one instead of connecting (tests)."""
        self.name = name
        self.settings = settings
        self.version = _version(name)
        self.metrics = Metrics(name, self.version)
        token = read_token(settings)
        self.api, self._live, self._ready = http.build(
            title or f"Dunlin {name}", self.version, self.metrics, token
        )
        self._bus = bus
        self._closers: list[tuple[str, Callable[[], Awaitable[None]]]] = []
        self._supervisor = Supervisor()
        self.url = ""

    def live(self, name: str, check: http.Check) -> None:
        """Add a check to /healthz: a reason means that only a restart helps."""
        self._live.add(name, check)

    def ready(self, name: str, check: http.Check) -> None:
        """Add a check to /readyz."""
        self._ready.add(name, check)

    def task(self, name: str, work: Coroutine[Any, Any, Any], *, may_end: bool = False) -> None:
        """Start a task; if it raises (or returns, unless `may_end`) the exit code is 1."""
        self._supervisor.add(name, work, may_end=may_end)

    def on_stop(self, name: str, close: Callable[[], Awaitable[None]]) -> None:
        """Call `close` after all tasks have ended; the last registered first."""
        self._closers.append((name, close))

    async def connect_bus(self) -> Bus:
        """Connect, however long it takes; make missing streams; /readyz shows the state."""
        if self._bus is None:
            self.ready("nats", lambda: "not connected yet")
            self._bus = await bus_package.connect(self.settings)
        bus = self._bus
        self.ready("nats", lambda: None if bus.connected else "not connected")
        self.on_stop("bus", bus.close)
        await bus.ensure_streams()
        return bus

    def stop(self) -> None:
        """Ask for a clean stop."""
        self._supervisor.stop()

    async def run(self, setup: Callable[["ServiceApp[S]"], Awaitable[None]]) -> int:
        """
        Serve until `stop`, a signal handler's call of it, or a failure.

        Returns:
            The exit code: 0 after a clean stop, 1 after a failure or a stop beyond its time.
        """
        listener = bind(self.settings)
        server, serving = self._serve(listener)
        self._supervisor.add("loop-lag", self._watch_lag())
        self.ready("setup", lambda: "still starting")
        self._supervisor.add("setup", self._set_up(setup), may_end=True)
        await self._supervisor.wait()
        log.info("stopping", reason=self._supervisor.failure or "asked to")
        try:
            async with asyncio.timeout(self.settings.stop_timeout_s):
                await self._shut_down(server, serving)
        except TimeoutError:
            left = [task.get_name() for task in asyncio.all_tasks()]
            log.error("stop took too long", tasks=left)  # noqa: TRY400 - there is no traceback to show
            return 1
        log.info("stopped", failure=self._supervisor.failure)
        return 1 if self._supervisor.failure else 0

    def _serve(self, listener: socket.socket) -> tuple[_Server, asyncio.Task[None]]:
        host, port = listener.getsockname()[:2]
        self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        config = uvicorn.Config(
            self.api,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=1,
            server_header=False,
        )
        server = _Server(config)
        task = self._supervisor.add("http", server.serve(sockets=[listener]))
        log.info("listening", url=self.url, version=self.version, pid=os.getpid())
        return server, task

    async def _set_up(self, setup: Callable[["ServiceApp[S]"], Awaitable[None]]) -> None:
        await setup(self)
        self.ready("setup", lambda: None)
        log.info("set up")

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + LAG_PERIOD_S
            await asyncio.sleep(LAG_PERIOD_S)
            lag = max(0.0, loop.time() - due)
            self.metrics.loop_lag.observe(lag)
            if lag > LAG_WARNING_S:
                log.warning("event loop was busy", lag_s=round(lag, 3))

    async def _shut_down(self, server: _Server, serving: asyncio.Task[None]) -> None:
        # Requests under way are answered while the rest still works.
        server.should_exit = True
        await asyncio.wait({serving}, timeout=HTTP_STOP_S)
        await self._supervisor.cancel()
        for name, close in reversed(self._closers):
            try:
                await close()
            except Exception:
                log.exception("closing failed", what=name)


def _version(name: str) -> str:
    for package in (f"dunlin-{name}", "dunlin"):
        try:
            return package_version(package)
        except PackageNotFoundError:
            continue
    return "0"


def read_token(settings: CommonSettings) -> str | None:
    """
    The bearer token of the REST API, None where none is asked for.

    Raises:
        SettingsError: the file cannot be read or is empty, or the address is not loopback and
            there is no token.
    """
    if settings.api_token:
        try:
            token = Path(settings.api_token).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"DUNLIN_API_TOKEN={settings.api_token!r}: {error}") from error
        if not token:
            raise SettingsError(f"DUNLIN_API_TOKEN={settings.api_token!r}: the file is empty")
        return token
    if not _is_loopback(settings.api_host):
        raise SettingsError(
            f"DUNLIN_API_HOST={settings.api_host!r}: not a loopback address, so DUNLIN_API_TOKEN "
            "must name a file with a bearer token"
        )
    return None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def bind(settings: CommonSettings) -> socket.socket:
    """
    A listening-to-be socket on the API's address.

    Raises:
        SettingsError: the address is not ours or the port is taken.
    """
    host, port = settings.api_host, settings.api_port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _name, address = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        raise SettingsError(f"DUNLIN_API_HOST={host!r} DUNLIN_API_PORT={port}: {error}") from error
    listener.setblocking(False)
    return listener


async def _main(
    name: str, settings: S, setup: Callable[[ServiceApp[S]], Awaitable[None]], title: str
) -> int:
    app = ServiceApp(name, settings, title=title)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, app.stop)
    return await app.run(setup)


GC_THRESHOLDS = (50_000, 20, 20)
"""Young objects before a collection, and collections before one of the older generations."""


def calm_garbage_collector() -> None:
    """
    Look for cycles less often: services hold large states of values that are in none.

    By default reading 10,000 Services spends a third of its time in the collector.
    """
    gc.set_threshold(*GC_THRESHOLDS)


def run_service(
    name: str,
    settings_type: type[S],
    setup: Callable[[ServiceApp[S]], Awaitable[None]],
    *,
    title: str = "",
    argv: list[str] | None = None,
) -> None:
    """The whole `main` of a service; does not return."""
    settings = load_or_exit(settings_type, argv)
    logging.setup(name, settings.replica, level=settings.log_level, form=settings.log_format)
    calm_garbage_collector()
    runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        code = runner.run(_main(name, settings, setup, title))
    except SettingsError as error:
        log.error("cannot start", error=str(error))  # noqa: TRY400 - a setting, not a bug
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
    sys.stdout.flush()
    sys.stderr.flush()
    # Closing the runner would wait for every task, also for one that will not end.
    os._exit(code)
