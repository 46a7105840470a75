"""
One process that listens in every lab Pod.

Sockets are opened in the Pod's namespace by a thread that enters it, and then served by the one
event loop of this process. It is told what to serve through a unix socket, one JSON object a line
each way (Request, Reply); `ResponderClient` speaks it. It knows nothing of Kubernetes and keeps no
state: after a restart its user says again what to serve.

    python -m dunlin_lab.responder SOCKET
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import resource
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import uvloop

from dunlin_lab import netns
from dunlin_lab.answers import (
    Connection,
    Datagrams,
    HttpConnection,
    SctpConnection,
    Workload,
)

BACKLOG = 1024
SO_RCVBUFFORCE = 33
"""As Linux has it; the socket module does not name it."""
LINE_BYTES_MAX = 1 << 20
ROOM_BYTES = 1 << 22
"""Of the buffer of a UDP socket."""


class ResponderError(Exception):
    """The responder refused a request or is not there."""


class Port(msgspec.Struct, frozen=True, order=True):
    """A containerPort."""

    protocol: Literal["TCP", "UDP", "SCTP"]
    port: int


class Request(msgspec.Struct, frozen=True):
    """
    What the control socket is asked.

    serve: listen on exactly these ports (again: only the difference is opened and closed).
    drain: answer on, but ask HTTP clients to reconnect. stop: close everything. list: tell all.
    """

    op: Literal["serve", "drain", "stop", "list"]
    id: str = ""
    netns: str = ""
    pod: str = ""
    node: str = ""
    ports: tuple[Port, ...] = ()


class Served(msgspec.Struct, frozen=True):
    """What is served under one id."""

    id: str
    netns: str
    pod: str
    node: str
    ports: tuple[Port, ...]
    draining: bool
    answered: int
    unsent: int


class Reply(msgspec.Struct, frozen=True):
    """`errors` name ports that could not be opened; the others are open."""

    ok: bool
    errors: tuple[str, ...] = ()
    served: tuple[Served, ...] = ()


class Listener:
    """The sockets of one port: IPv4 and IPv6, where the namespace has both."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._datagrams: list[socket.socket] = []

    async def open(self, workload: Workload, port: Port, sockets: list[socket.socket]) -> None:
        """Begin to answer."""
        loop = asyncio.get_running_loop()
        for sock in sockets:
            if port.protocol == "UDP":
                self._datagrams.append(sock)
                loop.add_reader(sock.fileno(), Datagrams(workload, sock).readable)
                continue
            kind: Callable[[Workload], Connection]
            kind = HttpConnection if port.protocol == "TCP" else SctpConnection
            factory = _Factory(kind, workload)
            self._servers.append(await loop.create_server(factory, sock=sock, backlog=BACKLOG))

    def close(self) -> None:
        """Stop listening; connections are the workload's."""
        loop = asyncio.get_running_loop()
        for server in self._servers:
            server.close()
        for sock in self._datagrams:
            loop.remove_reader(sock.fileno())
            sock.close()


class _Factory:
    """Makes the protocol of a new connection."""

    def __init__(self, kind: Callable[[Workload], Connection], workload: Workload) -> None:
        self._kind = kind
        self._workload = workload

    def __call__(self) -> Connection:
        return self._kind(self._workload)


class Responder:
    """All that is served, by id."""

    def __init__(self) -> None:
        self._requests: dict[str, Request] = {}
        self._workloads: dict[str, Workload] = {}
        self._listeners: dict[tuple[str, Port], Listener] = {}

    async def handle(self, request: Request) -> Reply:
        """Carry out one request."""
        match request.op:
            case "serve":
                return await self._serve(request)
            case "drain":
                workload = self._workloads.get(request.id)
                if workload is not None:
                    workload.draining = True
                return Reply(workload is not None)
            case "stop":
                return Reply(self._stop(request.id))
            case "list":
                return Reply(True, served=tuple(map(self._describe, self._requests)))

    async def _serve(self, request: Request) -> Reply:
        """Open what is missing, close what is too much."""
        old = self._requests.get(request.id)
        if old is not None and (old.netns, old.pod, old.node) != (
            request.netns,
            request.pod,
            request.node,
        ):
            self._stop(request.id)
        workload = self._workloads.setdefault(request.id, Workload(request.pod, request.node))
        workload.draining = False
        self._requests[request.id] = request
        for key in [key for key in self._listeners if key[0] == request.id]:
            if key[1] not in request.ports:
                self._listeners.pop(key).close()
        errors: list[str] = []
        for port in sorted(set(request.ports)):
            if (request.id, port) not in self._listeners:
                errors += await self._open(request, workload, port)
        return Reply(not errors, tuple(errors))

    async def _open(self, request: Request, workload: Workload, port: Port) -> list[str]:
        """One port; what went wrong is told by name, and the rest goes on."""
        try:
            sockets, errors = await netns.run_in_async(request.netns, lambda: open_sockets(port))
        except netns.NetnsError as error:
            return [f"{request.pod}: {port.protocol} {port.port}: {error}"]
        if sockets:
            listener = self._listeners[request.id, port] = Listener()
            await listener.open(workload, port, sockets)
        return [f"{request.pod}: {error}" for error in errors]

    def _stop(self, identity: str) -> bool:
        """Close listeners and connections, so that nothing of us holds the namespace."""
        if self._requests.pop(identity, None) is None:
            return False
        for key in [key for key in self._listeners if key[0] == identity]:
            self._listeners.pop(key).close()
        for connection in list(self._workloads.pop(identity).connections):
            connection.reset()
        return True

    def _describe(self, identity: str) -> Served:
        request, workload = self._requests[identity], self._workloads[identity]
        return Served(
            id=identity,
            netns=request.netns,
            pod=request.pod,
            node=request.node,
            ports=tuple(sorted(port for key, port in self._listeners if key == identity)),
            draining=workload.draining,
            answered=workload.answered,
            unsent=workload.unsent,
        )


def _make_room(sock: socket.socket) -> None:
    """A responder that was not given the processor for seconds must not look like a loss."""
    # Only root may have more than the kernel's bound; without it there is less room.
    with contextlib.suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM_BYTES)


def open_sockets(port: Port) -> tuple[list[socket.socket], list[str]]:
    """
    Sockets for one port in the calling thread's namespace, on all its addresses, bound.

    Returns:
        (sockets, errors): a namespace without IPv6 is no error, anything else that fails is one.
    """
    kind = socket.SOCK_DGRAM if port.protocol == "UDP" else socket.SOCK_STREAM
    protocol = socket.IPPROTO_SCTP if port.protocol == "SCTP" else 0
    sockets: list[socket.socket] = []
    errors: list[str] = []
    # All addresses of the Pod's own namespace.
    for family, everything in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # noqa: S104
        sock: socket.socket | None = None
        try:
            sock = socket.socket(family, kind | socket.SOCK_NONBLOCK, protocol)
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if kind == socket.SOCK_DGRAM:
                _make_room(sock)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind((everything, port.port))
        except OSError as error:
            if sock is not None:
                sock.close()
            if family == socket.AF_INET6 and error.errno in (
                errno.EAFNOSUPPORT,
                errno.EADDRNOTAVAIL,
            ):
                continue
            errors.append(f"{port.protocol} {everything} port {port.port}: {error}")
            continue
        sockets.append(sock)
    return sockets, errors


class ControlServer:
    """The unix socket: requests of one connection are answered in order."""

    def __init__(self, responder: Responder) -> None:
        self._responder = responder
        self._lock = asyncio.Lock()

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one client until it hangs up."""
        try:
            while line := await reader.readline():
                writer.write(msgspec.json.encode(await self._answer(line)) + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:
            # A line longer than the limit is a ValueError; the client sees the connection close.
            print(f"responder: control client: {error}", file=sys.stderr, flush=True)
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> Reply:
        try:
            request = msgspec.json.decode(line, type=Request)
        except msgspec.DecodeError as error:
            return Reply(False, (f"request: {error}",))
        async with self._lock:
            return await self._responder.handle(request)


class ResponderClient:
    """Tells a responder what to serve; a connection for each call, so that it may restart."""

    def __init__(self, path: Path, timeout_s: float = 10.0) -> None:
        self._path = path
        self._timeout_s = timeout_s

    async def call(self, request: Request) -> Reply:
        """
        Send one request.

        Raises:
            ResponderError: nobody answers.
        """
        try:
            async with asyncio.timeout(self._timeout_s):
                reader, writer = await asyncio.open_unix_connection(
                    str(self._path), limit=64 * LINE_BYTES_MAX
                )
                try:
                    writer.write(msgspec.json.encode(request) + b"\n")
                    line = await reader.readline()
                finally:
                    writer.close()
            return msgspec.json.decode(line, type=Reply)
        except (OSError, TimeoutError, msgspec.DecodeError) as error:
            raise ResponderError(f"responder at {self._path}: {error!r}") from error


async def serve(path: Path) -> None:
    """Serve the control socket until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    control = ControlServer(Responder())
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, before anything is served
    server = await asyncio.start_unix_server(
        control.connected, path=str(path), limit=LINE_BYTES_MAX
    )
    await stop.wait()
    server.close()
    path.unlink(missing_ok=True)  # noqa: ASYNC240 - once, after everything was served


def main(argv: list[str]) -> int:
    """Entry point."""
    if len(argv) != 2:
        print("usage: python -m dunlin_lab.responder SOCKET", file=sys.stderr)
        return 2
    # Each Pod port takes two sockets, each connection one.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Path(argv[1])))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
