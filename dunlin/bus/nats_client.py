"""nats-py's client with a short cut for the many: bytes go to a sink before any object is made."""

import asyncio
import logging
import random
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dunlin.bus import nkeys, stats
from dunlin.bus.base import BusUnavailable
from dunlin.imports import absent
from dunlin.tls import strict

# aiohttp is for NATS over WebSockets alone: 150 ms of every start.
with absent("aiohttp"):
    from nats import errors as nats_errors
    from nats.aio.client import Client, Server
    from nats.aio.msg import Msg
    from nats.protocol.parser import PERMISSIONS_ERR

if TYPE_CHECKING:
    from dunlin.bus import BusSettings

log = logging.getLogger("dunlin.bus")

Sink = Callable[[bytes, bytes, bytes, bytes | None], None]
"""Takes (subject, reply, data, headers as on the wire or None); must not raise or wait."""

BACKOFF_FIRST_S = 0.05
BACKOFF_MAX_S = 2.0
PING_PERIOD_S = 5
GIVE_UP_TRIES = 10
GIVE_UP_S = 0.3
PINGS_LOST_MAX = 2
QUOTE = "'"


def backoff_s(attempt: int) -> float:
    """How long to wait before try `attempt` (0, 1 …): doubling, bounded, half of it random."""
    longest = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** min(attempt, 16))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, guards nothing


def server_urls(text: str) -> tuple[str, ...]:
    """
    Of `nats://user:password@a:4222,b:4222`: the first's scheme and user are those of all.

    A server that says its own scheme is taken as it is. With an nkey there is no password; the user
    still names whose inbox replies come to.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        return ()
    scheme, there_is, rest = parts[0].partition("://")
    user, at, _ = rest.rpartition("@")
    prefix = f"{scheme}://{user}{at}" if there_is else ""
    return tuple(part if "://" in part else prefix + part for part in parts)


@dataclass(frozen=True, slots=True)
class Options:
    """How to connect; the fields are those of `BusSettings`."""

    urls: tuple[str, ...]
    name: str = "dunlin"
    creds: str = ""
    ca: str = ""
    cert: str = ""
    key: str = ""
    replicas: int = 1
    make_streams: bool = True
    timeout_s: float = 5.0
    heartbeat_s: float = 0.25
    resync_after_s: float = 6 * 3600.0

    @classmethod
    def of(cls, settings: "BusSettings") -> "Options":
        """From a service's settings."""
        return cls(
            urls=server_urls(settings.nats_url),
            name=settings.replica,
            creds=settings.nats_creds,
            ca=settings.nats_ca,
            cert=settings.nats_cert,
            key=settings.nats_key,
            replicas=settings.nats_replicas,
            make_streams=settings.nats_make_streams,
        )

    def connect_args(self) -> dict[str, Any]:
        """
        Keyword arguments for nats-py.

        Raises:
            BusUnavailable: a file of certificates cannot be read.
        """
        args: dict[str, Any] = {"servers": list(self.urls), "name": self.name}
        if user := next((user for url in self.urls if (user := urlsplit(url).username)), None):
            # Where each user has permissions, nobody may listen to the inboxes of others.
            args["inbox_prefix"] = f"_INBOX.{user}"
        try:
            if self.ca or self.cert:
                args["tls"] = self._load(strict(ssl.create_default_context(cafile=self.ca or None)))
        except (OSError, ValueError) as error:
            raise BusUnavailable(f"NATS certificates: {error}") from error
        return args

    def credentials(self) -> nkeys.Credentials | None:
        """
        Of the file as it is now; None where none is named.

        Raises:
            BusUnavailable: naming the file and what is wrong with it.
        """
        try:
            return nkeys.read(self.creds) if self.creds else None
        except nkeys.NkeyError as error:
            raise BusUnavailable(f"NATS credentials: {error}") from error

    def _load(self, context: ssl.SSLContext) -> ssl.SSLContext:
        """The certificate of this client, if it has one. Raises OSError (ssl.SSLError is one)."""
        if self.cert:
            context.load_cert_chain(self.cert, self.key or None)
        return context

    def renew(self, context: ssl.SSLContext) -> None:
        """
        Read certificates again, for the next connection: they may have been rotated.

        Raises:
            OSError: a file cannot be used; the context is as it was.
        """
        if self.ca:
            context.load_verify_locations(self.ca)
        self._load(context)


def is_status(headers: bytes | None) -> bool:
    """The message carries a status line (`NATS/1.0 503 …`): it is from the server itself."""
    return headers is not None and headers[8:9] == b" "


def status_of(headers: bytes) -> int:
    """The number in the status line."""
    return int(headers[9:12])


def header_value(headers: bytes, name: bytes) -> bytes | None:
    """The first value of one header, None where there is none."""
    start = headers.find(b"\r\n" + name + b":")
    if start < 0:
        return None
    start += len(name) + 3
    return headers[start : headers.index(b"\r\n", start)].strip()


class FastClient(Client):
    """
    A client whose subscriptions may have a sink.

    nats-py parses headers, builds an object and crosses a queue and a task for every message:
    45,000 a second here. A sink is called from the parser with the bytes: more than twice as many.
    This overrides nats-py's `_process_msg` and `_process_err`, which the contract suite holds to
    their signatures. With credentials it sets what nats-py sets where the package nkeys is, which
    takes no new seed over: public key and signature of a connection are of the file as it is then.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sinks: dict[int, Sink] = {}
        self.on_disconnect: set[Callable[[], None]] = set()
        self.on_reconnect: set[Callable[[], None]] = set()
        self._up = asyncio.Event()
        self._attempts = 0
        self._leaving = False
        self._last_logged = -60.0
        self._renew: Callable[[], None] | None = None
        self._credentials: nkeys.Credentials | None = None
        self._read_credentials: Callable[[], nkeys.Credentials | None] = lambda: None
        self._settling: asyncio.Task[None] | None = None

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes
    ) -> None:
        sink = self.sinks.get(sid)
        if sink is None:
            await super()._process_msg(sid, subject, reply, data, headers)
        else:
            sink(subject, reply, data, headers)

    async def _process_err(self, err_msg: str) -> None:
        """
        What the server says is wrong; all but a refused subject ends the connection.

        nats-py closes for good then. A server that forgot a public key may know the next one, and
        one that is full may have room later: try again, as after a loss.
        """
        if PERMISSIONS_ERR in err_msg:
            await super()._process_err(err_msg)
        else:
            error = nats_errors.Error(f"nats: {err_msg.strip(QUOTE)}")
            await self._on_error(error)
            await self._process_op_err(error)

    def _sign(self, nonce: str) -> bytes:
        """Called for each connection, before nats-py takes the public key and the JWT."""
        try:
            self._credentials = self._read_credentials()
        except BusUnavailable as error:
            log.warning("%s; trying with those of before", error)
        assert self._credentials is not None
        self._public_nkey = self._credentials.public
        jwt = self._credentials.jwt.encode()
        self._user_jwt_cb = (lambda: bytearray(jwt)) if jwt else None
        return self._credentials.sign(nonce)

    async def request(self, *args: Any, **options: Any) -> Msg:
        """
        As nats-py's, but a cancellation that comes together with the reply is not lost.

        nats-py waits by asyncio.wait_for, which swallows it before Python 3.12 (gh-86296): the task
        would go on for ever.
        """
        task = asyncio.current_task()
        before = task.cancelling() if task else 0
        reply = await super().request(*args, **options)
        if task is not None and task.cancelling() > before:
            raise asyncio.CancelledError
        return reply

    async def start(self, options: Options, wait_s: float | None) -> None:
        """
        Connect; goes on trying, now and after each loss, until closed.

        Raises:
            BusUnavailable: not within `wait_s` (None: wait for ever), or a file cannot be used.
        """
        args = options.connect_args()
        self._read_credentials = options.credentials
        self._credentials = options.credentials()
        if self._credentials is not None:
            args["signature_cb"] = self._sign
        if "tls" in args:
            self._renew = partial(options.renew, args["tls"])
        connecting = asyncio.ensure_future(
            self.connect(
                **args,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnected,
                reconnected_cb=self._on_reconnected,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type] # seconds, any number
                connect_timeout=2,
                ping_interval=PING_PERIOD_S,
                max_outstanding_pings=PINGS_LOST_MAX,
                reconnect_to_server_handler=self._choose,
            )
        )
        try:
            await asyncio.wait({connecting}, timeout=wait_s)
        finally:
            if not connecting.done():
                await self._give_up(connecting)
        if connecting.cancelled() or connecting.exception() is not None or not self.is_connected:
            cause = None if connecting.cancelled() else connecting.exception()
            raise BusUnavailable(f"no NATS server at {self._where(options)}") from cause
        self._up.set()

    async def _give_up(self, connecting: "asyncio.Future[None]") -> None:
        """End an attempt: nats-py may swallow a cancellation and would try again for ever."""
        self.options["allow_reconnect"] = False
        for _ in range(GIVE_UP_TRIES):
            connecting.cancel()
            done, _pending = await asyncio.wait({connecting}, timeout=GIVE_UP_S)
            if done:
                return
        log.error("an attempt to connect to NATS does not end")

    async def until_connected(self, what: str, timeout_s: float) -> None:
        """
        Wait for the connection.

        Raises:
            BusUnavailable: closed, or not connected in time; names `what`.
        """
        if self.is_connected and self._up.is_set():
            return
        if self.is_closed:
            raise BusUnavailable(f"{what}: the connection is closed")
        try:
            async with asyncio.timeout(timeout_s):
                await self._up.wait()
        except TimeoutError:
            raise BusUnavailable(f"{what}: no connection to NATS") from None

    async def settled(self) -> None:
        """As `flush`: one round trip for all who ask in one turn of the loop."""
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle())
        await asyncio.shield(self._settling)

    async def _settle(self) -> None:
        self._settling = None
        await self.flush()

    async def add_sink(self, subject: str, sink: Sink) -> Callable[[], None]:
        """Subscribe with a sink; call the result to end it."""

        async def nothing(_message: Msg) -> None:
            """Never called: the sink takes all."""

        subscription = await self.subscribe(subject, cb=nothing)
        sid = subscription._id  # noqa: SLF001 - nats-py names it nowhere else
        self.sinks[sid] = sink

        def remove() -> None:
            if self.sinks.pop(sid, None) is not None and not self.is_closed:
                task = asyncio.get_running_loop().create_task(subscription.unsubscribe())
                task.add_done_callback(_forget)

        return remove

    def _choose(self, servers: list[Server], _info: dict[str, Any]) -> tuple[Server, float]:
        """Which server to try next, and after how many seconds."""
        attempt = self._attempts
        self._attempts += 1
        if self._renew is not None:
            try:
                self._renew()
            except OSError as error:
                log.warning("NATS certificates: %s; trying with those of before", error)
        return servers[attempt % len(servers)], backoff_s(attempt)

    async def _on_disconnected(self) -> None:
        if not self._up.is_set() or self.is_closed or self._leaving:
            return
        self._up.clear()
        uri = self._current_server.uri if self._current_server else None
        where = f"{uri.hostname}:{uri.port}" if uri else "?"
        stats.DISCONNECTS[where] += 1
        log.warning("NATS connection lost server=%s", where)
        for callback in tuple(self.on_disconnect):
            callback()

    async def leave(self) -> None:
        """Close for good; whoever follows or publishes is told as after a loss."""
        self._leaving = True
        await self.close()
        for callback in tuple(self.on_disconnect):
            callback()

    async def _on_reconnected(self) -> None:
        self._attempts = 0
        self._up.set()
        log.info("NATS connection is back")
        for callback in tuple(self.on_reconnect):
            callback()

    async def _on_error(self, error: Exception) -> None:
        """Every failed try comes here: one line a few seconds is enough."""
        now = time.monotonic()
        if now - self._last_logged > 10 or isinstance(error, nats_errors.SlowConsumerError):
            self._last_logged = now
            log.warning("NATS: %s: %s", type(error).__name__, error)

    @staticmethod
    def _where(options: Options) -> str:
        parts = [urlsplit(url) for url in options.urls]
        return ", ".join(f"{part.hostname}:{part.port}" for part in parts)


def _forget(task: "asyncio.Task[None]") -> None:
    """An unsubscribe that failed because the connection is gone needs no second word."""
    if not task.cancelled() and (error := task.exception()) is not None:
        log.debug("unsubscribe: %s", error)


__all__ = ["FastClient", "Options", "backoff_s", "header_value", "is_status", "nats_errors"]
