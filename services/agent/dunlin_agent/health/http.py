"""The smallest HTTP server: one GET, one answer; for ports that come and go with Services."""

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import structlog

from dunlin_agent.health.core import Reply

REQUEST_SECONDS: Final = 5.0
REQUEST_BYTES_MAX: Final = 8192

log = structlog.get_logger(__name__)

Answer = Callable[[str], Reply]
"""From the path of a request."""


async def listen(port: int, answer: Answer, host: str | None = None) -> asyncio.Server:
    """
    Serve on `host`, or on all addresses of the node, of both families.

    Raises:
        OSError: the port is taken.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                writer.write(respond(await reader.readuntil(b"\r\n\r\n"), answer))
                await writer.drain()
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError) as error:
            log.debug("health check ended early", port=port, error=str(error))
        except TimeoutError:
            log.debug("health check too slow", port=port)
        finally:
            writer.close()

    return await asyncio.start_server(serve, host, port, limit=REQUEST_BYTES_MAX)


def respond(request: bytes, answer: Answer) -> bytes:
    """The bytes of the answer; 400 and 405 for what is no GET or HEAD."""
    words = request.split(b"\r\n", 1)[0].split()
    if len(words) != 3 or not words[2].startswith(b"HTTP/1"):
        return encode(Reply(400, b"{}\n"))
    if words[0] not in {b"GET", b"HEAD"}:
        return encode(Reply(405, b"{}\n"))
    path = words[1].decode("latin-1").partition("?")[0]
    whole = encode(answer(path))
    return whole if words[0] == b"GET" else whole.partition(b"\r\n\r\n")[0] + b"\r\n\r\n"


def encode(reply: Reply) -> bytes:
    """HTTP/1.1, one answer a connection."""
    lines = [
        f"HTTP/1.1 {reply.status} {HTTPStatus(reply.status).phrase}",
        f"Content-Type: {reply.content_type}",
        "X-Content-Type-Options: nosniff",
        f"Content-Length: {len(reply.body)}",
        "Connection: close",
        *(f"{name}: {value}" for name, value in reply.headers),
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + reply.body
