"""
A blocking rtnetlink socket that lives in one network namespace.

pyroute2 encodes and decodes the messages; its own sockets are not used, because they need an event
loop each and, for another namespace, a process. Here a namespace costs two setns() calls, and any
number of requests go to the kernel in one system call. Source: netlink(7), rtnetlink(7).
"""

import errno
import os
import socket
import struct
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from pyroute2.netlink.rtnl.fibmsg import fibmsg
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.ndmsg import ndmsg
from pyroute2.netlink.rtnl.rtmsg import rtmsg
from pyroute2.netlink.rtnl.tcmsg import tcmsg

from dunlin_agent.adapters.netns import entered

AF_INET: Final = socket.AF_INET

# linux/netlink.h
NLM_F_REQUEST: Final = 0x001
NLM_F_ACK: Final = 0x004
NLM_F_DUMP: Final = 0x300
NLM_F_REPLACE: Final = 0x100
NLM_F_EXCL: Final = 0x200
NLM_F_CREATE: Final = 0x400
NLM_F_ACK_TLVS: Final = 0x200
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
NLMSGERR_ATTR_MSG: Final = 1
SOL_NETLINK: Final = 270
NETLINK_CAP_ACK: Final = 10
NETLINK_EXT_ACK: Final = 11
NETLINK_GET_STRICT_CHK: Final = 12

# linux/rtnetlink.h
RTM_NEWLINK: Final = 16
RTM_DELLINK: Final = 17
RTM_GETLINK: Final = 18
RTM_NEWADDR: Final = 20
RTM_DELADDR: Final = 21
RTM_GETADDR: Final = 22
RTM_NEWROUTE: Final = 24
RTM_DELROUTE: Final = 25
RTM_GETROUTE: Final = 26
RTM_NEWNEIGH: Final = 28
RTM_DELNEIGH: Final = 29
RTM_GETNEIGH: Final = 30
RTM_NEWRULE: Final = 32
RTM_DELRULE: Final = 33
RTM_GETRULE: Final = 34
RTM_NEWQDISC: Final = 36
RTM_NEWTFILTER: Final = 44

ADD: Final = NLM_F_CREATE | NLM_F_EXCL
REPLACE: Final = NLM_F_CREATE | NLM_F_REPLACE

_HEADER = struct.Struct("=IHHII")
_RECEIVE_BYTES: Final = 1 << 17
_RECEIVE_BUFFER_BYTES: Final = 1 << 20

_DECODERS: Final[dict[int, Any]] = {
    RTM_NEWLINK: ifinfmsg,
    RTM_DELLINK: ifinfmsg,
    RTM_NEWADDR: ifaddrmsg,
    RTM_DELADDR: ifaddrmsg,
    RTM_NEWROUTE: rtmsg,
    RTM_DELROUTE: rtmsg,
    RTM_NEWNEIGH: ndmsg,
    RTM_DELNEIGH: ndmsg,
    RTM_NEWRULE: fibmsg,
    RTM_DELRULE: fibmsg,
    RTM_NEWQDISC: tcmsg,
    RTM_NEWTFILTER: tcmsg,
}


class RtnetlinkError(OSError):
    """The kernel refused a request; the message says which and, where the kernel says it, why."""


class Request(NamedTuple):
    """
    One message to the kernel.

    `what` names it for people ("address 10.0.0.2/32 on eth0"); `accept` are errno values that are
    as good as success (EEXIST when adding what may be there, and so on).
    """

    kind: int
    flags: int
    message: Any
    what: str
    accept: tuple[int, ...] = ()


def family_of(address: IPv4Address | IPv6Address) -> int:
    """AF_INET or AF_INET6."""
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def attributes(message: Any) -> dict[str, Any]:
    """A decoded message's attributes by name; the last of equal names."""
    return dict(message["attrs"])


class Rtnetlink:
    """Not for use by two threads at a time."""

    def __init__(self, netns: Path | None = None, groups: int = 0) -> None:
        """
        Open in `netns`; `groups` are RTMGRP_* bits of kernel events to receive.

        Raises:
            NamespaceGoneError: no such namespace.
        """
        with entered(netns):
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_CAP_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_EXT_ACK, 1)
        self._socket.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        self._socket.bind((0, groups))
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """For an event loop, on a socket opened with `groups`."""
        return self._socket.fileno()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        self.close()

    def apply(self, *requests: Request) -> None:
        """
        Send all in one system call, and wait for the kernel's answer to each.

        The kernel goes on after a refusal, so all have been tried when this raises.

        Raises:
            RtnetlinkError: the first refusal that its request does not accept.
        """
        if not requests:
            return
        first = self._sequence + 1
        self._socket.send(b"".join(self._encode(request, NLM_F_ACK) for request in requests))
        waiting = {first + i: request for i, request in enumerate(requests)}
        failed: RtnetlinkError | None = None
        while waiting:
            for kind, flags, sequence, body in self._receive():
                if kind != NLMSG_ERROR or sequence not in waiting:
                    continue
                # Taken out whether or not another has failed: else this would wait for ever.
                error = _error_of(waiting.pop(sequence), flags, body)
                failed = failed or error
        if failed is not None:
            raise failed

    def dump(self, kind: int, message: Any) -> list[Any]:
        """
        All objects of RTM_GET* `kind`, as decoded messages.

        Raises:
            RtnetlinkError: the kernel refused.
        """
        request = Request(kind, NLM_F_DUMP, message, f"dump {kind}")
        self._socket.send(self._encode(request, 0))
        found: list[Any] = []
        while True:
            for answer_kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if answer_kind == NLMSG_DONE:
                    return found
                if answer_kind == NLMSG_ERROR:
                    raise _error_of(request, flags, body) or RtnetlinkError(0, request.what)
                found.append(_decode(answer_kind, body))

    def link(self, name: str) -> Any | None:
        """The link of that name, decoded; None when there is none."""
        request = Request(RTM_GETLINK, 0, link_message(name=name), f"link {name}")
        self._socket.send(self._encode(request, 0))
        while True:
            for kind, flags, sequence, body in self._receive():
                if sequence != self._sequence:
                    continue
                if kind == RTM_NEWLINK:
                    return _decode(kind, body)
                failed = _error_of(request, flags, body)
                if failed is None or failed.errno == errno.ENODEV:
                    return None
                raise failed

    def events(self) -> list[tuple[int, Any]]:
        """
        What has come in: (RTM_*, decoded message); blocks when nothing has.

        Raises:
            OSError: ENOBUFS when events were lost; the caller must look at the whole state again.
        """
        return [
            (kind, _decode(kind, body)) for kind, _, _, body in self._receive() if kind in _DECODERS
        ]

    def _encode(self, request: Request, flags: int) -> bytes:
        self._sequence += 1
        header = request.message["header"]
        header["type"] = request.kind
        header["flags"] = NLM_F_REQUEST | request.flags | flags
        header["sequence_number"] = self._sequence
        request.message.encode()
        return bytes(request.message.data)

    def _receive(self) -> Iterator[tuple[int, int, int, bytes]]:
        """(type, flags, sequence, whole message) of each message of one datagram."""
        data = self._socket.recv(_RECEIVE_BYTES)
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
            assert length >= _HEADER.size
            yield kind, flags, sequence, data[offset : offset + length]
            offset += (length + 3) & ~3


def _decode(kind: int, data: bytes) -> Any:
    message = _DECODERS[kind](data)
    message.decode()
    return message


def _error_of(request: Request, flags: int, data: bytes) -> RtnetlinkError | None:
    """The refusal in an NLMSG_ERROR message; None for an acknowledgement or an accepted error."""
    (negative,) = struct.unpack_from("=i", data, _HEADER.size)
    number = -negative
    if number == 0 or number in request.accept:
        return None
    reason = os.strerror(number)
    if flags & NLM_F_ACK_TLVS:
        reason = _kernel_words(data[_HEADER.size + 4 + _HEADER.size :]) or reason
    return RtnetlinkError(number, f"{request.what}: {reason}")


def _kernel_words(data: bytes) -> str:
    """NLMSGERR_ATTR_MSG among the attributes of an extended acknowledgement, or ""."""
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if kind == NLMSGERR_ATTR_MSG:
            return data[offset + 4 : offset + length].rstrip(b"\0").decode(errors="replace")
        offset += max((length + 3) & ~3, 4)
    return ""


def _filled(message: Any, attrs: Iterable[tuple[str, Any]], **fields: int) -> Any:
    for name, value in fields.items():
        message[name] = value
    message["attrs"] = [(name, value) for name, value in attrs if value is not None]
    return message


def link_message(
    *, name: str | None = None, attrs: Iterable[tuple[str, Any]] = (), **fields: int
) -> Any:
    """An ifinfomsg; `fields` are index, flags, change."""
    return _filled(ifinfmsg(), [("IFLA_IFNAME", name), *attrs], **fields)


def address_message(attrs: Iterable[tuple[str, Any]] = (), **fields: int) -> Any:
    """An ifaddrmsg; `fields` are family, prefixlen, index, scope."""
    return _filled(ifaddrmsg(), attrs, **fields)


def route_message(attrs: Iterable[tuple[str, Any]] = (), **fields: int) -> Any:
    """A rtmsg; `fields` are family (0: any), dst_len, table, proto, scope, type, flags."""
    return _filled(rtmsg(), attrs, **{"family": socket.AF_UNSPEC} | fields)


def neighbour_message(attrs: Iterable[tuple[str, Any]] = (), **fields: int) -> Any:
    """A ndmsg; `fields` are family, ifindex, state, flags."""
    return _filled(ndmsg(), attrs, **fields)


def rule_message(attrs: Iterable[tuple[str, Any]] = (), **fields: int) -> Any:
    """A fib_rule_hdr; `fields` are family, dst_len, src_len, action, table."""
    return _filled(fibmsg(), attrs, **fields)


def tc_message(attrs: Iterable[tuple[str, Any]] = (), **fields: int) -> Any:
    """A tcmsg; `fields` are index, handle, parent, info."""
    return _filled(tcmsg(), attrs, **fields)
