"""Clients inside network namespaces: ping, HTTP, UDP, and probes that count what is lost."""

from __future__ import annotations

import http.client
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any

from dunlin_lab import netns
from dunlin_lab.responder import SO_RCVBUFFORCE

TIMEOUT_S = 3.0
ROOM_BYTES = 1 << 22
"""Of a socket's buffer: who was not given the processor for seconds must not look like a loss."""
LATE_S = 10.0
"""Answers to a probe that come so late count as answers; only a loss waits for all of it."""
MATRIX_TRIES = 3
"""A datagram may be lost where a queue overflows; a Pod that cannot be reached loses every one."""


def family(address: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6."""
    return socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET


def get(place: str, address: str, port: int = 80, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """One new HTTP connection from inside a namespace; the JSON answer."""
    return netns.run_in(place, lambda: get_here(address, port, timeout_s))


def get_here(address: str, port: int, timeout_s: float) -> dict[str, Any]:
    """As `get`, in the namespace of this thread."""
    link = http.client.HTTPConnection(address, port, timeout=timeout_s)
    try:
        link.request("GET", "/")
        answer: dict[str, Any] = json.loads(link.getresponse().read())
        return answer
    finally:
        link.close()


def gets(place: str, address: str, count: int, port: int = 80) -> list[dict[str, Any]]:
    """Many new connections, one after the other."""
    return netns.run_in(place, lambda: [get_here(address, port, TIMEOUT_S) for _ in range(count)])


def ask(place: str, address: str, port: int, data: bytes = b"?") -> dict[str, Any]:
    """One UDP datagram; the JSON answer."""
    return netns.run_in(place, lambda: _ask(address, port, data))


def asks(place: str, address: str, count: int, port: int) -> list[dict[str, Any]]:
    """Many UDP flows of one datagram each, one after the other."""
    return netns.run_in(place, lambda: [_ask(address, port, b"?") for _ in range(count)])


def _ask(address: str, port: int, data: bytes) -> dict[str, Any]:
    with socket.socket(family(address), socket.SOCK_DGRAM) as link:
        link.settimeout(TIMEOUT_S)
        link.connect((address, port))
        link.send(data)
        answer: dict[str, Any] = json.loads(link.recv(65535))
        return answer


def matrix(place: str, targets: Iterable[tuple[str, int]]) -> dict[tuple[str, int, str], str]:
    """
    Reach every (address, port) by ping, TCP and UDP from one namespace.

    Returns:
        What failed: (address, port, kind) -> why; and where the source address was translated.
    """
    wanted = list(targets)
    return netns.run_in(place, lambda: _matrix(wanted))


def _matrix(targets: list[tuple[str, int]]) -> dict[tuple[str, int, str], str]:
    failed: dict[tuple[str, int, str], str] = {}
    own = _own_addresses()
    for address, port in targets:
        lost = ping_here(address, count=1, tries=MATRIX_TRIES)
        if lost:
            failed[address, port, "ping"] = "no reply"
        for kind, call in (("tcp", _tcp_once), ("udp", _udp_once)):
            problem = _attempt(call, address, port, own)
            if problem:
                failed[address, port, kind] = problem
    return failed


def _attempt(call: Any, address: str, port: int, own: set[str]) -> str:
    problem = ""
    for _ in range(MATRIX_TRIES):
        try:
            answer = call(address, port)
        except (OSError, http.client.HTTPException, ValueError) as error:
            problem = str(error) or type(error).__name__
            continue
        return "" if answer["client"] in own else f"source {answer['client']} is not in {own}"
    return problem


def _tcp_once(address: str, port: int) -> dict[str, Any]:
    return get_here(address, port, 1.0)


def _udp_once(address: str, port: int) -> dict[str, Any]:
    with socket.socket(family(address), socket.SOCK_DGRAM) as link:
        link.settimeout(1.0)
        link.connect((address, port))
        link.send(b"?")
        answer: dict[str, Any] = json.loads(link.recv(65535))
        return answer


def _own_addresses() -> set[str]:
    """Addresses of this namespace's interfaces, as the kernel would choose them for any target."""
    found = set()
    for target in ("192.0.2.1", "2001:db8::1"):
        with socket.socket(family(target), socket.SOCK_DGRAM) as link:
            try:
                link.connect((target, 9))
            except OSError:
                continue
            found.add(link.getsockname()[0])
    return found


def ping(place: str, address: str, *, count: int = 3, size: int = 56, tries: int = 1) -> int:
    """Echo requests from inside a namespace with `size` octets of data; how many were lost."""
    return netns.run_in(place, lambda: ping_here(address, count=count, size=size, tries=tries))


def ping_here(address: str, *, count: int, size: int = 56, tries: int = 1) -> int:
    """As `ping`, in the namespace of this thread. Don't-fragment is set for IPv4."""
    lost = 0
    with _icmp_socket(address) as link:
        for sequence in range(count):
            lost += not any(_echo(link, address, sequence, size) for _ in range(tries))
    return lost


def _icmp_socket(address: str) -> socket.socket:
    if family(address) == socket.AF_INET6:
        return socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
    link = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    link.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER, IP_PMTUDISC_DO
    return link


def _echo(link: socket.socket, address: str, sequence: int, size: int) -> bool:
    ident = threading.get_native_id() & 0xFFFF
    v6 = link.family == socket.AF_INET6
    packet = struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, ident, sequence) + bytes(size)
    if not v6:
        packet = packet[:2] + _checksum(packet).to_bytes(2, "big") + packet[4:]
    try:
        link.sendto(packet, (address, 0))
    except OSError:
        return False
    deadline = time.monotonic() + 1.0
    while (left := deadline - time.monotonic()) > 0:
        if not select.select([link], [], [], left)[0]:
            return False
        data, peer = link.recvfrom(65535)
        body = data if v6 else data[(data[0] & 15) * 4 :]
        kind, _, _, got, number = struct.unpack_from("!BBHHH", body)
        same = ip_address(peer[0]) == ip_address(address) and len(body) == 8 + size
        if kind == (129 if v6 else 0) and (got, number) == (ident, sequence) and same:
            return True
    return False


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data[: len(data) // 2 * 2]))
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass
class Counts:
    """What a probe has seen. `errors`: distinct reasons."""

    sent: int = 0
    answered: int = 0
    errors: set[str] = field(default_factory=set)

    @property
    def lost(self) -> int:
        """Requests without an answer."""
        return self.sent - self.answered


class UdpProbe:
    """One UDP flow that sends at a steady rate and counts the answers; any loss shows."""

    def __init__(self, place: str, address: str, port: int, interval_s: float = 0.01) -> None:
        self.counts = Counts()
        self._stop = threading.Event()
        self._interval_s = interval_s
        self._future = netns.start_in(place, lambda: self._run(address, port))

    def _run(self, address: str, port: int) -> None:
        with socket.socket(family(address), socket.SOCK_DGRAM) as link:
            link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM_BYTES)
            link.connect((address, port))
            link.setblocking(False)
            next_send = time.monotonic()
            while not self._stop.is_set():
                self._send(link)
                next_send += self._interval_s
                self._receive(link, next_send)
            # What is under way still counts: a busy machine answers late, a loss never.
            self._receive(link, time.monotonic() + LATE_S, until_all=True)

    def _send(self, link: socket.socket) -> None:
        self.counts.sent += 1
        try:
            link.send(b"probe")
        except OSError as error:
            self.counts.errors.add(os.strerror(error.errno or 0))

    def _receive(self, link: socket.socket, deadline: float, *, until_all: bool = False) -> None:
        while (left := deadline - time.monotonic()) > 0:
            if until_all and not self.counts.lost:
                return
            if not select.select([link], [], [], left)[0]:
                return
            try:
                link.recv(65535)
                self.counts.answered += 1
            except OSError as error:
                self.counts.errors.add(os.strerror(error.errno or 0))

    def end(self) -> None:
        """Send no more; answers under way still count."""
        self._stop.set()

    def stop(self) -> Counts:
        """End it and return what it saw."""
        self.end()
        self._future.result(timeout=LATE_S + 30.0)
        return self.counts


class HttpProbe:
    """
    HTTP requests without a pause: over one connection (`keep`), or a new one each time.

    A kept connection that breaks is an error; it is not made again.
    """

    def __init__(
        self,
        place: str,
        address: str,
        *,
        port: int = 80,
        keep: bool = False,
        pause_s: float = 0.005,
    ) -> None:
        self.counts = Counts()
        self.pods: dict[str, int] = {}
        self._stop = threading.Event()
        self._pause_s = pause_s
        run = self._run_kept if keep else self._run_new
        self._future = netns.start_in(place, lambda: run(address, port))

    def _run_new(self, address: str, port: int) -> None:
        while not self._stop.is_set():
            self._count(lambda: get_here(address, port, TIMEOUT_S))
            self._stop.wait(self._pause_s)

    def _run_kept(self, address: str, port: int) -> None:
        link = http.client.HTTPConnection(address, port, timeout=10.0)
        link.connect()

        def again() -> dict[str, Any]:
            link.sock.settimeout(10.0)
            link.request("GET", "/")
            response = link.getresponse()
            if response.getheader("Connection", "").lower() == "close":
                raise ConnectionError("the server closed a kept connection")
            answer: dict[str, Any] = json.loads(response.read())
            return answer

        # Without this http.client would quietly connect again.
        link.auto_open = 0
        try:
            while not self._stop.is_set() and not self.counts.errors:
                self._count(again)
                self._stop.wait(self._pause_s)
        finally:
            link.close()

    def _count(self, call: Any) -> None:
        self.counts.sent += 1
        try:
            pod = call()["pod"]
        except (OSError, http.client.HTTPException, ValueError) as error:
            self.counts.errors.add(f"{type(error).__name__}: {error}")
            return
        self.counts.answered += 1
        self.pods[pod] = self.pods.get(pod, 0) + 1

    def end(self) -> None:
        """Send no more; answers under way still count."""
        self._stop.set()

    def stop(self) -> Counts:
        """End it and return what it saw."""
        self.end()
        self._future.result(timeout=20.0)
        return self.counts


def stop_all(probes: Iterable[UdpProbe | HttpProbe]) -> list[Counts]:
    """End them together: they wait for late answers, up to LATE_S, side by side."""
    running = list(probes)
    for probe in running:
        probe.end()
    return [probe.stop() for probe in running]
