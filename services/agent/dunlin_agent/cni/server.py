"""
The unix socket that the CNI executable talks to.

Calls for one container run one after the other, in the order they came; calls for different
containers run side by side. A caller that went away does not cancel its call: the DEL that follows
it must find a whole state.
"""

import asyncio
import contextlib
import errno
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final, Protocol, assert_never

import structlog

from dunlin_agent.cni import wire
from dunlin_agent.cni.result import render, render_error
from dunlin_agent.cni.types import CNI_VERSION_MAX, CniError, CniErrorCode, CniRequest, Result

READ_TIMEOUT_SECONDS: Final = 5.0

log = structlog.get_logger(__name__)


class PodNetwork(Protocol):
    """What the commands do. Each may raise CniError; anything else is reported as INTERNAL."""

    async def add(self, request: CniRequest) -> Result:
        """Attach; repeated for the same container and interface it gives the same result."""

    async def delete(self, request: CniRequest) -> None:
        """Detach; success when there is nothing (left) to detach, whatever is missing."""

    async def check(self, request: CniRequest) -> None:
        """Raise CniError when the attachment is not as ADD left it."""

    async def gc(self, request: CniRequest) -> None:
        """Detach whatever is not in `request.conf.valid_attachments`, which is never None here."""

    async def status(self, request: CniRequest) -> None:
        """Raise CniError when ADD could not succeed now."""


# (command, error code or 0, seconds): one call for each request, for the metrics.
Observer = Callable[[str, int, float], None]


def observe_nothing(_command: str, _code: int, _seconds: float) -> None:
    """An observer for callers without metrics."""


class KeyedLock:
    """A lock for each key, first come first served; keys without a holder cost nothing."""

    def __init__(self) -> None:
        """No key is held."""
        self._locks: dict[str, asyncio.Lock] = {}
        self._users: Counter[str] = Counter()

    @contextlib.asynccontextmanager
    async def hold(self, key: str) -> AsyncIterator[None]:
        """Wait for the key and hold it."""
        lock = self._locks.setdefault(key, asyncio.Lock())
        self._users[key] += 1
        try:
            async with lock:
                yield
        finally:
            self._users[key] -= 1
            if self._users[key] == 0:
                del self._users[key], self._locks[key]


class CniServer:
    """Listens on `path` (mode 0600) and answers with what `network` does."""

    def __init__(
        self, path: Path, network: PodNetwork, observe: Observer = observe_nothing
    ) -> None:
        """Nothing is opened before `start`."""
        self._path = path
        self._network = network
        self._observe = observe
        self._locks = KeyedLock()
        self._server: asyncio.Server | None = None
        self._calls: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """
        Bind the socket in place of a dead one.

        Raises:
            OSError: the folder cannot be made, or another agent listens there (EADDRINUSE).
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        await _remove_dead_socket(self._path)
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._accept, path=self._path)
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Take no more calls, finish those that run, remove the socket."""
        if self._server is None:
            return
        self._server.close()
        if self._calls:
            await asyncio.wait(self._calls)
        self._path.unlink(missing_ok=True)
        self._server = None

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Keep the call's task: asyncio itself holds tasks only weakly."""
        task = asyncio.current_task()
        assert task is not None
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)
        try:
            writer.write(await self._answer(reader))
            await writer.drain()
        except OSError as error:
            log.warning("cni caller went away before its answer", error=str(error))
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        """The reply frame for whatever the caller sends."""
        started = time.monotonic()
        command, body = "unknown", b""
        try:
            async with asyncio.timeout(READ_TIMEOUT_SECONDS):
                body = await wire.read_frame(reader)
            request = wire.decode_request(body)
            command = request.command
            stdout = await self._call(request)
        except TimeoutError:
            return self._fail(command, started, body, _too_slow())
        except CniError as error:
            return self._fail(command, started, body, error)
        self._observe(command, 0, time.monotonic() - started)
        return wire.encode_reply(0, stdout)

    def _fail(self, command: str, started: float, body: bytes, error: CniError) -> bytes:
        log.warning("cni call failed", command=command, code=int(error.code), error=str(error))
        self._observe(command, int(error.code), time.monotonic() - started)
        version = wire.config_version(body) if body else CNI_VERSION_MAX
        return wire.encode_reply(1, render_error(error, version))

    async def _call(self, request: CniRequest) -> bytes:
        """Run the call in its container's turn; what is not a CniError becomes one."""
        try:
            async with self._locks.hold(request.container_id):
                return await self._dispatch(request)
        except CniError:
            raise
        except Exception as error:
            log.exception("cni call broke", command=request.command, who=request.who)
            raise CniError(
                CniErrorCode.INTERNAL,
                f"{request.command} failed",
                f"{request.who}: {type(error).__name__}: {error}",
            ) from error

    async def _dispatch(self, request: CniRequest) -> bytes:
        match request.command:
            case "ADD":
                return render(await self._network.add(request), request.conf.cni_version)
            case "DEL":
                await self._network.delete(request)
            case "CHECK":
                await self._network.check(request)
            case "GC":
                await self._network.gc(request)
            case "STATUS":
                await self._network.status(request)
            case _:
                assert_never(request.command)
        return b""


def _too_slow() -> CniError:
    details = f"no whole request within {READ_TIMEOUT_SECONDS:g} s"
    return CniError(CniErrorCode.IO_FAILURE, "request was not sent in time", details)


async def _remove_dead_socket(path: Path) -> None:
    """Unlink a socket that nobody listens on; raise when somebody does."""
    if not path.is_socket():  # noqa: ASYNC240 - once, before anything is served
        return
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, as above
        return
    writer.close()
    message = f"another agent listens on {path}"
    raise OSError(errno.EADDRINUSE, message)
