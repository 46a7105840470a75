"""
The Kubernetes API by the `kubernetes` package's asyncio client.

Configuration, authentication, TLS,
connections are its work; lists and watches are decoded here by msgspec, page by page and line by
line.

Why not its models: bench/watcher_list.py (its typed list needs several times the time and memory).
"""

import asyncio
import os
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import aiohttp
import msgspec
from kubernetes.aio import client, config
from kubernetes.aio.client import rest

from dunlin_watcher import kube
from dunlin_watcher.adapters.errors import (
    ApiError,
    ExpiredError,
    GarbageError,
    NotServedError,
    RefusedError,
    UnavailableError,
)
from dunlin_watcher.kinds import Kind

T = TypeVar("T")

PAGE_SIZE = 500
CONNECT_TIMEOUT_S = 10.0
LIST_SILENCE_S = 60.0
WATCH_GRACE_S = 15.0
"""
How long beyond timeoutSeconds a silent watch may last before its connection counts as half-open.
"""
LINE_MAX_BYTES = 32 * 1024 * 1024
ERROR_MAX_BYTES = 64 * 1024
AS_METADATA = "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io"
AS_IT_IS = "application/json"

_LIST = msgspec.json.Decoder(kube.List)
_METADATA = msgspec.json.Decoder(kube.MetadataList)
_EVENT = msgspec.json.Decoder(kube.WatchEvent)
_STATUS = msgspec.json.Decoder(kube.Status)


class _Rest(rest.RESTClientObject):
    """The package's connections, with TCP probes: a peer that vanished is noticed within 30 s."""

    def _create_connector(self) -> aiohttp.TCPConnector:
        return aiohttp.TCPConnector(
            limit=self.maxsize, ssl=self.ssl_context, socket_factory=_probed_socket
        )


def _probed_socket(address: Any) -> socket.socket:
    family, kind, protocol, _name, _address = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000)
    return made


class KubernetesApi:
    """
    Reads collections of one cluster.

    `kubeconfig`: a file; "" takes the Pod's service account, else the user's default file. Every
    method raises only `ApiError`s.
    """

    def __init__(self, kubeconfig: str = "", *, page_size: int = PAGE_SIZE) -> None:
        self.kubeconfig = kubeconfig
        self.page_size = page_size
        self._client: client.ApiClient | None = None
        self._connecting = asyncio.Lock()

    @property
    def url(self) -> str:
        """The server, "" before the first request."""
        return str(self._client.configuration.host) if self._client else ""

    async def close(self) -> None:
        """Drop all connections; the next request reads the configuration anew."""
        old, self._client = self._client, None
        if old is not None:
            await old.close()  # type: ignore[no-untyped-call]

    async def pages(self, kind: Kind) -> AsyncIterator[kube.List]:
        """A consistent list of the whole collection, in pages; the version is that of all pages."""
        async for body in self._bodies(kind, AS_IT_IS):
            yield body

    async def metadata(self, kind: Kind) -> AsyncIterator[kube.MetadataList]:
        """The same, of metadata only where the server can do that."""
        async for body in self._bodies(kind, f"{AS_METADATA},{AS_IT_IS}", _METADATA):
            yield body

    async def watch(
        self, kind: Kind, version: str, timeout_s: int
    ) -> AsyncGenerator[list[kube.WatchEvent], None]:
        """
        Events after `version`, as they arrive, until the server ends the watch (after `timeout_s`).

        Raises:
            ExpiredError: `version` is too old. GarbageError: a line that is no event.
            UnavailableError: the connection broke, or nothing came for `timeout_s` and some.
        """
        query = {
            "watch": "1",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": str(timeout_s),
        }
        silence = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=timeout_s + WATCH_GRACE_S
        )
        response = await self._get(kind.path, query, AS_IT_IS, silence)
        try:
            async for events in _events(kind, response):
                yield events
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UnavailableError(f"watch of {kind.path}: {_text(error)}") from error
        finally:
            response.close()

    async def _bodies(self, kind: Kind, accept: str, decoder: Any = _LIST) -> AsyncIterator[Any]:
        query = {"limit": str(self.page_size)}
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=LIST_SILENCE_S
        )
        while True:
            response = await self._get(kind.path, query, accept, timeout)
            page = _decode(decoder, await _body(kind, response), f"list of {kind.path}")
            yield page
            if not page.metadata.continue_:
                return
            query["continue"] = page.metadata.continue_

    async def _get(
        self, path: str, query: dict[str, str], accept: str, limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        try:
            api = await self._connected()
            method, url, headers, body, post = await api.param_serialize(
                "GET",
                path,
                query_params=list(query.items()),
                header_params={"Accept": accept},
                auth_settings=["BearerToken"],
            )
            reply = await api.call_api(method, url, headers, body, post, _request_timeout=limits)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise UnavailableError(f"GET {path}: {_text(error)}") from error
        response: aiohttp.ClientResponse = reply.response
        if response.status != 200:
            refusal = await _refusal(path, response)
            if response.status == 401:
                # The credentials may have been renewed on disk: read them again next time.
                await self.close()
            raise refusal
        return response

    async def _connected(self) -> client.ApiClient:
        async with self._connecting:
            if self._client is None:
                self._client = await _connect(self.kubeconfig)
            return self._client


async def _connect(kubeconfig: str) -> client.ApiClient:
    settings = client.Configuration()
    try:
        await _configure(settings, kubeconfig)
        api = client.ApiClient(settings)
        api.rest_client = _Rest(settings)
    except (config.ConfigException, OSError, ValueError) as error:
        where = kubeconfig or "default configuration"
        raise UnavailableError(f"kubeconfig {where}: {_text(error)}") from error
    api.user_agent = "dunlin-watcher"
    return api


async def _configure(settings: client.Configuration, kubeconfig: str) -> None:
    in_cluster: Any = config.load_incluster_config
    from_file: Any = config.load_kube_config
    if kubeconfig:
        await from_file(kubeconfig, client_configuration=settings)
    elif os.environ.get("KUBERNETES_SERVICE_HOST"):
        in_cluster(client_configuration=settings)
    else:
        await from_file(client_configuration=settings)


async def _body(kind: Kind, response: aiohttp.ClientResponse) -> bytes:
    try:
        return await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise UnavailableError(f"list of {kind.path}: {_text(error)}") from error
    finally:
        response.release()


async def _events(
    kind: Kind, response: aiohttp.ClientResponse
) -> AsyncIterator[list[kube.WatchEvent]]:
    """Whole lines only: what a broken connection leaves of the last one is dropped."""
    rest_of_line = bytearray()
    async for chunk in response.content.iter_any():
        rest_of_line += chunk
        if b"\n" not in chunk:
            if len(rest_of_line) > LINE_MAX_BYTES:
                raise GarbageError(f"watch of {kind.path}: a line beyond {LINE_MAX_BYTES} bytes")
            continue
        *lines, last = bytes(rest_of_line).split(b"\n")
        rest_of_line = bytearray(last)
        yield [_decode(_EVENT, line, f"watch of {kind.path}") for line in lines if line.strip()]


def _decode(decoder: msgspec.json.Decoder[T], data: bytes, what: str) -> T:
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        start = data[:80].decode("utf-8", "backslashreplace")
        raise GarbageError(f"{what}: {error}: {start!r}") from error


async def _refusal(path: str, response: aiohttp.ClientResponse) -> ApiError:
    """The server's own words where it has some."""
    try:
        body = await response.content.read(ERROR_MAX_BYTES)
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        body = _text(error).encode()
    finally:
        response.close()
    try:
        message = str(_STATUS.decode(body).message)
    except (msgspec.DecodeError, UnicodeDecodeError):
        message = body[:200].decode("utf-8", "backslashreplace")
    text = f"GET {path}: {response.status} {response.reason}: {message}"
    return error_of(text, response.status, retry_after_s(response.headers.get("Retry-After")))


def error_of(text: str, status: int, retry_after: float | None = None) -> ApiError:
    """The error for an HTTP or Status code."""
    if status == 410:
        return ExpiredError(text, retry_after)
    if status == 404:
        return NotServedError(text, status, retry_after)
    return RefusedError(text, status, retry_after)


def error_of_event(kind: Kind, event: kube.WatchEvent) -> ApiError:
    """What an ERROR event of a watch says."""
    try:
        status = _STATUS.decode(event.object)
    except msgspec.DecodeError as error:
        return GarbageError(f"watch of {kind.path}: ERROR event: {error}")
    text = f"watch of {kind.path}: {status.code} {status.reason}: {status.message}"
    if status.reason in ("Expired", "Gone"):
        return ExpiredError(text)
    return error_of(text, status.code if isinstance(status.code, int) else 500)


def retry_after_s(header: str | None) -> float | None:
    """Seconds to wait by a Retry-After header (seconds or a date); None if unreadable."""
    if header is None:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max(0.0, moment.timestamp() - time.time())


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
