"""The REST API of flowctl's replicas."""

import asyncio
import socket
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import httpx
import msgspec

from dunlin import wire
from dunlin_metrics.counters import Counters, Switches

T = TypeVar("T")


class FlowctlError(Exception):
    """A replica could not be read; `reason` is one fixed word for metrics."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(text)
        self.reason = reason


class FlowctlClient:
    """Reads replicas; every method raises only `FlowctlError`."""

    def __init__(self, *, timeout_s: float, token_file: str = "") -> None:
        self._token_file = token_file
        # Never by a proxy: flowctl is inside.
        self._http = httpx.AsyncClient(timeout=timeout_s, trust_env=False)

    async def close(self) -> None:
        """Drop all connections."""
        await self._http.aclose()

    async def switches(self, url: str) -> Switches:
        """Every switch as the replica at `url` sees it."""
        return await self._get(f"{url}/v1/switches", Switches)

    async def counters(self, url: str, node: str) -> Counters:
        """The counters of one switch that this replica has a session with."""
        return await self._get(f"{url}/v1/switches/{quote(node, safe='')}/counters", Counters)

    async def _get(self, url: str, kind: type[T]) -> T:
        try:
            answer = await self._http.get(url, headers=self._headers())
        except (httpx.HTTPError, OSError) as error:
            text = f"GET {url}: {type(error).__name__}: {error}"
            raise FlowctlError(text, "connection") from error
        if answer.status_code != 200:
            text = f"GET {url}: {answer.status_code}: {answer.text[:200]}"
            raise FlowctlError(text, f"http_{answer.status_code}")
        try:
            return wire.decode(answer.content, kind)
        except msgspec.DecodeError as error:
            raise FlowctlError(f"GET {url}: {error}", "garbage") from error

    def _headers(self) -> dict[str, str]:
        """Read anew each time: tokens are rotated."""
        if not self._token_file:
            return {}
        try:
            token = Path(self._token_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            text = f"DUNLIN_FLOWCTL_TOKEN={self._token_file!r}: {error}"
            raise FlowctlError(text, "token") from error
        return {"Authorization": f"Bearer {token}"}


async def resolve(urls: Iterable[str]) -> list[str]:
    """
    The base URLs with every address of their host names, sorted.

    A name that does not resolve now stays as it is: reading it then says why. So does an https
    URL: its certificate is for the name.
    """
    found: set[str] = set()
    for url in urls:
        parts = urlsplit(url.rstrip("/"))
        if parts.scheme == "https" or not parts.hostname:
            found.add(url.rstrip("/"))
            continue
        found.update(await _addresses(parts.hostname, parts.port or 80, url.rstrip("/")))
    return sorted(found)


async def _addresses(host: str, port: int, url: str) -> list[str]:
    loop = asyncio.get_running_loop()
    try:
        answers = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError:
        return [url]
    parts = urlsplit(url)
    made = []
    for family, _kind, _protocol, _name, address in answers:
        there = f"[{address[0]}]" if family == socket.AF_INET6 else str(address[0])
        made.append(urlunsplit(parts._replace(netloc=f"{there}:{port}")))
    return made
