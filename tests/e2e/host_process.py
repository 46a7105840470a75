"""A process of a node, or of the world outside, that answers TCP (HTTP) and UDP on one port."""

from __future__ import annotations

import json
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dunlin_lab import netns


class HostProcess:
    """Listens at once, on all addresses; answers as the lab's responder does."""

    def __init__(self, place: str, port: int, name: str) -> None:
        self._name = name
        self._stop = threading.Event()
        ready = threading.Event()
        self._future = netns.start_in(place, lambda: self._run(port, ready))
        while not ready.wait(0.05):
            if self._future.done():
                self._future.result()

    def _run(self, port: int, ready: threading.Event) -> None:
        with (
            socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as tcp,
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as udp,
        ):
            udp.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            udp.bind(("::", port))
            tcp.settimeout(0.05)
            udp.settimeout(0.05)
            ready.set()
            while not self._stop.is_set():
                self._answer_tcp(tcp)
                self._answer_udp(udp)

    def _answer_tcp(self, tcp: socket.socket) -> None:
        try:
            link, peer = tcp.accept()
        except TimeoutError:
            return
        with link:
            link.settimeout(2.0)
            link.recv(1000)
            body = self._body(peer[0])
            link.sendall(b"HTTP/1.0 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    def _answer_udp(self, udp: socket.socket) -> None:
        try:
            _, peer = udp.recvfrom(2000)
        except TimeoutError:
            return
        udp.sendto(self._body(peer[0]), peer)

    def _body(self, client: str) -> bytes:
        return json.dumps({"pod": self._name, "client": client.removeprefix("::ffff:")}).encode()

    def stop(self) -> None:
        """Nobody listens any more; raises what went wrong."""
        self._stop.set()
        self._future.result(timeout=10)


@contextmanager
def listening(place: str, port: int, name: str) -> Iterator[None]:
    """A HostProcess for that time."""
    process = HostProcess(place, port, name)
    try:
        yield
    finally:
        process.stop()


@contextmanager
def address_on(place: str, address: str) -> Iterator[None]:
    """A place has one more address, on its loopback, for that time."""
    command = ["ip", "-n", Path(place).name, "addr"]
    subprocess.run([*command, "add", address, "dev", "lo"], check=True, timeout=10)
    try:
        yield
    finally:
        subprocess.run([*command, "del", address, "dev", "lo"], check=True, timeout=10)
