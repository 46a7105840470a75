"""Where sessions come from: listening sockets, and switches that flowctl connects to."""

import asyncio
import random
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import structlog

from dunlin.service.settings import SettingsError
from dunlin.tls import strict
from dunlin_flowctl.adapters.session import Session, SessionClosed
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.metrics import FlowctlMetrics

log = structlog.get_logger(__name__)

STREAM_LIMIT = 1 << 18
BACKLOG = 4096
RECONNECT_MAX_S = 15.0
Serve = Callable[[Session], Awaitable[None]]
Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Address:
    """`kind` tcp or ssl with host and port, or unix with `path`."""

    kind: str
    host: str = ""
    port: int = 0
    path: str = ""

    def __str__(self) -> str:
        """As in the settings."""
        if self.kind == "unix":
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.kind}:{host}:{self.port}"


def parse_address(text: str) -> Address:
    """
    `tcp:HOST:PORT`, `ssl:HOST:PORT` (IPv6 in brackets) or `unix:PATH`.

    Raises:
        SettingsError: anything else.
    """
    kind, _, rest = text.partition(":")
    if kind == "unix" and rest:
        return Address("unix", path=rest)
    host, _, port = rest.rpartition(":")
    if kind in {"tcp", "ssl"} and host and port.isdigit() and int(port) <= 0xFFFF:
        return Address(kind, host.strip("[]"), int(port))
    raise SettingsError(f"{text!r}: expected tcp:HOST:PORT, ssl:HOST:PORT or unix:PATH")


def tls_context(settings: FlowctlSettings, *, server: bool) -> ssl.SSLContext:
    """
    Both sides show certificates of the same authorities.

    Raises:
        SettingsError: a file is missing or unusable.
    """
    purpose = ssl.Purpose.CLIENT_AUTH if server else ssl.Purpose.SERVER_AUTH
    try:
        context = ssl.create_default_context(purpose, cafile=settings.openflow_ca or None)
        context.load_cert_chain(settings.openflow_cert, settings.openflow_key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            f"DUNLIN_OPENFLOW_CERT={settings.openflow_cert!r} DUNLIN_OPENFLOW_KEY="
            f"{settings.openflow_key!r} DUNLIN_OPENFLOW_CA={settings.openflow_ca!r}: {error}"
        ) from error
    # Certificates of switches name no host: the authority is ours alone.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    return strict(context)


def rotating_context(settings: FlowctlSettings) -> ssl.SSLContext:
    """
    A server's context that takes new files at the next handshake; the old ones until they work.

    Raises:
        SettingsError: a file is missing or unusable now.
    """
    files = [settings.openflow_cert, settings.openflow_key, settings.openflow_ca]
    context = tls_context(settings, server=True)
    current, stamps = context, _stamps(files)

    def renew(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        nonlocal current, stamps
        found = _stamps(files)
        if found != stamps:
            try:
                current = tls_context(settings, server=True)
            except SettingsError as error:
                log.warning("certificates cannot be used yet", error=str(error))
            else:
                stamps = found
                log.info("certificates read again", files=files)
        connection.context = current

    context.sni_callback = renew  # called for every ClientHello
    return context


def _stamps(files: list[str]) -> list[tuple[int, int] | None]:
    """What changes when a file is replaced, also through a symlink as Kubernetes does."""
    found: list[tuple[int, int] | None] = []
    for name in files:
        try:
            status = Path(name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_ino))
    return found


class Listener:
    """Gives every connection that has shaken hands to `serve`; a bad peer costs only its own."""

    def __init__(self, settings: FlowctlSettings, metrics: FlowctlMetrics, serve: Serve) -> None:
        self._settings = settings
        self._metrics = metrics
        self._serve = serve
        self._handshaking = 0
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.addresses: list[Address] = []

    async def start(self) -> None:
        """Listen. Raises SettingsError: an address cannot be used."""
        for address in map(parse_address, self._settings.openflow_listen):
            try:
                self._servers.append(await self._listen(address))
            except OSError as error:
                raise SettingsError(f"DUNLIN_OPENFLOW_LISTEN={address}: {error}") from error
            bound = self._servers[-1].sockets[0].getsockname()
            if address.kind != "unix":
                # The port that was given, where 0 was asked for.
                address = Address(address.kind, bound[0], bound[1])  # noqa: PLW2901
            self.addresses.append(address)
            log.info("listening for switches", address=str(address))

    async def _listen(self, address: Address) -> asyncio.Server:
        if address.kind == "unix":
            return await asyncio.start_unix_server(
                self._accept, address.path, limit=STREAM_LIMIT, backlog=BACKLOG
            )
        context = rotating_context(self._settings) if address.kind == "ssl" else None
        return await asyncio.start_server(
            self._accept,
            address.host,
            address.port,
            limit=STREAM_LIMIT,
            backlog=BACKLOG,
            ssl=context,
            ssl_handshake_timeout=self._settings.handshake_timeout_s if context else None,
        )

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        name = writer.get_extra_info("peername")
        peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else "unix"
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._session((reader, writer), peer)
        except asyncio.CancelledError:
            # Only `close` cancels; asyncio would log a cancelled connection as an error.
            log.debug("session cancelled", peer=peer)
        finally:
            self._tasks.discard(task)

    async def connect(self, text: str) -> None:
        """Keep a session with one switch for ever; tries again with back-off."""
        address = parse_address(text)
        wait_s = 0.5
        while True:
            try:
                pair = await self._open(address)
            except OSError as error:
                log.warning("cannot connect to switch", address=text, error=str(error))
            else:
                wait_s = 0.5
                await self._session(pair, text)
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            wait_s = min(RECONNECT_MAX_S, wait_s * 2)

    async def _open(self, address: Address) -> Pair:
        if address.kind == "unix":
            return await asyncio.open_unix_connection(address.path, limit=STREAM_LIMIT)
        context = tls_context(self._settings, server=False) if address.kind == "ssl" else None
        return await asyncio.open_connection(
            address.host, address.port, limit=STREAM_LIMIT, ssl=context
        )

    async def _session(self, pair: Pair, peer: str) -> None:
        """One connection from hello to end."""
        session = Session(*pair, peer, self._settings, self._metrics)
        try:
            await self._handshake(session)
            await self._serve(session)
        except TimeoutError:
            self._report(session, SessionClosed("handshake_timeout", "no handshake in time"))
        except SessionClosed as error:
            self._report(session, error)
        except Exception:
            # A bug costs one session: the others are served on, and the switch connects again.
            self._metrics.openflow_errors.labels("internal").inc()
            log.exception("OpenFlow session failed", peer=session.peer)
        finally:
            session.close("done")

    async def _handshake(self, session: Session) -> None:
        if self._handshaking >= self._settings.handshaking_max:
            raise SessionClosed("too_many", f"{self._handshaking} peers are shaking hands")
        self._handshaking += 1
        try:
            await session.handshake()
        finally:
            self._handshaking -= 1

    def _report(self, session: Session, error: SessionClosed) -> None:
        self._metrics.openflow_errors.labels(error.reason).inc()
        log.error("OpenFlow session failed", peer=session.peer, reason=str(error))

    def report_end(self, session: Session, end: SessionClosed) -> None:
        """Log the end of a session; count it unless somebody just hung up."""
        if end.reason in {"eof", "done", "cancelled", "replaced"}:
            log.info("OpenFlow session ended", peer=session.peer, reason=str(end))
        else:
            self._report(session, end)

    async def close(self) -> None:
        """Listen no more and end every session."""
        for server in self._servers:
            server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
