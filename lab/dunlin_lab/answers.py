"""
What a lab Pod says to whoever calls it: HTTP over TCP, one JSON object for each datagram.

The object is {"pod", "node", "client", "server"}: `pod` and `node` are Kubernetes names, `client`
is the source address as the Pod saw it (an IP address, no port), `server` the address that was
called with its port ("10.0.0.7:80", "[fd00::7]:80").
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, cast

HEAD_BYTES_MAX = 64 * 1024
"""A request's line and headers; longer is answered with 431."""
BODY_BYTES_MAX = 1 << 20
"""A GET's body, which is read and ignored; longer is answered with 413."""
DATAGRAMS_PER_WAKEUP = 64
"""Then other sockets have their turn."""

_END_OF_HEAD = b"\r\n\r\n"
# linux/in.h; Python's socket module has this name only from 3.12 on.
_IP_PKTINFO = 8
_V4_INFO = struct.Struct("=I4s4s")
_V6_INFO = struct.Struct("=16sI")


@dataclass(slots=True)
class Workload:
    """A Pod (or the outside) as its callers see it."""

    pod: str
    node: str
    draining: bool = False
    """Answers still, but asks HTTP clients to call again elsewhere: Connection: close."""
    answered: int = 0
    """HTTP requests, datagrams and SCTP messages answered."""
    unsent: int = 0
    """Answers that the kernel refused to send, such as to an address without a route."""
    connections: set[Connection] = field(default_factory=set)


def answer(workload: Workload, client: str, server: str, port: int) -> bytes:
    """The JSON object for one caller."""
    address = ip_address(server)
    where = f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"
    body = {"pod": workload.pod, "node": workload.node, "client": client, "server": where}
    return json.dumps(body).encode()


class Connection(asyncio.Protocol):
    """A TCP or SCTP connection, counted so that `stop` can close it."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.transport: asyncio.Transport | None = None
        self.body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Both addresses are known now and stay."""
        # uvloop's transports are none of asyncio's classes.
        self.transport = cast("asyncio.Transport", transport)
        peer, local = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        if not peer or not local:
            # The client was gone before we looked.
            self.transport.abort()
            return
        self.body = answer(self.workload, _plain(peer[0]), _plain(local[0]), local[1])
        self.workload.connections.add(self)

    def reset(self) -> None:
        """Close with RST: a socket that waits for its peer's FIN would keep the namespace alive."""
        if self.transport is None:
            return
        sock = self.transport.get_extra_info("socket")
        if sock is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """However it ended, it is no longer ours to close."""
        del exc
        self.workload.connections.discard(self)


class HttpConnection(Connection):
    """HTTP/1.1 with keep-alive and pipelining: enough for curl, wrk, browsers and probes."""

    def __init__(self, workload: Workload) -> None:
        super().__init__(workload)
        self._buffer = b""
        self._skip = 0
        self._response = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The answer does not change as long as the connection lives."""
        super().connection_made(transport)
        self._response = _response(b"200 OK", self.body)

    def data_received(self, data: bytes) -> None:
        """Answer every complete request in the data, in one write."""
        assert self.transport is not None
        self._buffer += data
        out: list[bytes] = []
        close = False
        while not close:
            request = self._next_request()
            if request is None:
                break
            response, close = self._reply(request)
            out.append(response)
        if not close and len(self._buffer) > HEAD_BYTES_MAX:
            out.append(_failure(b"431 Request Header Fields Too Large"))
            close = True
        if out:
            self.workload.answered += len(out)
            self.transport.write(b"".join(out))
        if close:
            self.transport.close()

    def _next_request(self) -> bytes | None:
        """The next request line and headers; None when it is not all here."""
        if self._skip:
            taken = min(self._skip, len(self._buffer))
            self._buffer = self._buffer[taken:]
            self._skip -= taken
        if self._skip:
            return None
        head, mark, rest = self._buffer.partition(_END_OF_HEAD)
        if not mark:
            return None
        self._buffer = rest
        return head

    def _reply(self, head: bytes) -> tuple[bytes, bool]:
        """(response, close after it)."""
        line, _, headers = head.partition(b"\r\n")
        words = line.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return _failure(b"400 Bad Request"), True
        if words[0] not in (b"GET", b"HEAD"):
            return _failure(b"405 Method Not Allowed"), True
        close, body_bytes = _connection_headers(headers, words[2])
        if not 0 <= body_bytes <= BODY_BYTES_MAX:
            return _failure(b"413 Content Too Large"), True
        self._skip = body_bytes
        if close or self.workload.draining:
            return _response(b"200 OK", self.body, words[0], b"Connection: close\r\n"), True
        if words[0] == b"HEAD":
            return _response(b"200 OK", self.body, words[0]), False
        return self._response, False


class SctpConnection(Connection):
    """Answers each message, as UDP does."""

    def data_received(self, data: bytes) -> None:
        """One-to-one SCTP sockets hand over one message at a time."""
        del data
        assert self.transport is not None
        self.workload.answered += 1
        self.transport.write(self.body)


def _connection_headers(headers: bytes, version: bytes) -> tuple[bool, int]:
    """(close after this request, bytes of body; -1 for a body whose length is not said)."""
    close, body_bytes = version == b"HTTP/1.0", 0
    if not headers:
        return close, body_bytes
    for line in headers.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"connection":
            close = b"close" in value or (close and b"keep-alive" not in value)
        elif name == b"content-length":
            body_bytes = int(value) if value.strip().isdigit() else -1
        elif name == b"transfer-encoding":
            body_bytes = -1
    return close, body_bytes


def _response(status: bytes, body: bytes, method: bytes = b"GET", extra: bytes = b"") -> bytes:
    """One HTTP/1.1 response."""
    head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n"
    return head % (status, len(body), extra) + (b"" if method == b"HEAD" else body)


def _failure(status: bytes) -> bytes:
    """A response after which we close, saying why."""
    body = json.dumps({"error": status.decode()}).encode()
    return _response(status, body, extra=b"Connection: close\r\n")


class Datagrams:
    """
    A UDP socket that answers from the very address that was called.

    A Pod may have several addresses; an answer from another one is not what its caller waits for.
    Source: ip(7) IP_PKTINFO, ipv6(7) IPV6_RECVPKTINFO.
    """

    def __init__(self, workload: Workload, sock: socket.socket) -> None:
        self._workload = workload
        self._sock = sock
        self._port = int(sock.getsockname()[1])
        self._v6 = sock.family == socket.AF_INET6
        if self._v6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._ancillary_bytes = socket.CMSG_SPACE(_V6_INFO.size if self._v6 else _V4_INFO.size)

    def readable(self) -> None:
        """Answer what has arrived, up to DATAGRAMS_PER_WAKEUP."""
        for _ in range(DATAGRAMS_PER_WAKEUP):
            try:
                # The content does not matter, and what is longer is cut off.
                _, ancillary, _, peer = self._sock.recvmsg(1, self._ancillary_bytes)
            except BlockingIOError:
                return
            except OSError:
                # An ICMP error for an earlier answer comes back here; it is none of the next.
                self._workload.unsent += 1
                continue
            self._reply(ancillary, peer)

    def _reply(self, ancillary: list[tuple[int, int, bytes]], peer: Any) -> None:
        """One answer; one that cannot be sent is counted, as the network may lose any."""
        local, source = (self._info_v6 if self._v6 else self._info_v4)(ancillary)
        body = answer(self._workload, _plain(peer[0]), local, self._port)
        try:
            self._sock.sendmsg([body], [source], 0, peer)
        except OSError:
            self._workload.unsent += 1
            return
        self._workload.answered += 1

    @staticmethod
    def _info_v4(ancillary: list[tuple[int, int, bytes]]) -> tuple[str, tuple[int, int, bytes]]:
        """(address called, ancillary data that makes it the source)."""
        _, local, _ = _V4_INFO.unpack(ancillary[0][2])
        info = _V4_INFO.pack(0, local, bytes(4))
        return socket.inet_ntop(socket.AF_INET, local), (socket.IPPROTO_IP, _IP_PKTINFO, info)

    @staticmethod
    def _info_v6(ancillary: list[tuple[int, int, bytes]]) -> tuple[str, tuple[int, int, bytes]]:
        """As `_info_v4`; a link-local address means nothing without its interface."""
        local, ifindex = _V6_INFO.unpack(ancillary[0][2])
        text = socket.inet_ntop(socket.AF_INET6, local)
        info = _V6_INFO.pack(local, ifindex if ip_address(text).is_link_local else 0)
        return text, (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)


def _plain(address: str) -> str:
    """Without the interface of a link-local address."""
    return address.partition("%")[0]
