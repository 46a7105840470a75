"""The responder answers in many namespaces at once, as a Pod's own server would."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Iterator
from functools import partial
from ipaddress import IPv4Interface, IPv6Interface
from pathlib import Path
from typing import Any

import pytest

from dunlin_lab import links, netns, procs
from dunlin_lab.paths import LabPaths
from dunlin_lab.responder import Port, Request, ResponderClient, ResponderError

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

WEB = (Port("TCP", 80), Port("UDP", 53))


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[ResponderClient]:
    """A responder of this test only."""
    paths = LabPaths("resp", tmp_path)
    registry = procs.Processes(paths)
    argv = [sys.executable, "-m", "dunlin_lab.responder", str(paths.responder_socket)]
    registry.start("responder", argv)
    client = ResponderClient(paths.responder_socket)
    async with asyncio.timeout(10):
        while True:
            try:
                await client.call(Request("list"))
                break
            except ResponderError:
                await asyncio.sleep(0.01)
    yield client
    registry.stop("responder")


@pytest.fixture
def pods() -> Iterator[tuple[Path, Path]]:
    """Two namespaces joined by a veth pair: 192.0.2.1-2 and .9, fd00::1-2 and ::9."""
    names = [f"dl-resptest-{os.getpid()}-{end}" for end in "ab"]
    a, b = (netns.create(name) for name in names)

    def cable() -> None:
        with links.route() as ipr:
            links.veth(ipr, "eth0", "eth0", b, 1500)

    netns.run_in(a, cable)
    for path, numbers in ((a, "19"), (b, "2")):
        netns.run_in(path, partial(addresses, numbers))
    yield a, b
    for name in names:
        netns.delete(name)


def addresses(numbers: str) -> None:
    """Give eth0 of this namespace its addresses."""
    links.sysctl("ipv6/conf/all/accept_dad", "0")
    with links.route() as ipr:
        links.up(ipr, "lo")
        for number in numbers:
            v4 = IPv4Interface(f"192.0.2.{number}/24")
            v6 = IPv6Interface(f"fd00::{number}/64")
            links.up(ipr, "eth0", (v4, v6))


def get(path: Path, host: str, times: int = 1) -> list[dict[str, Any]]:
    """GETs on one connection from a namespace."""

    def call() -> list[dict[str, Any]]:
        connection = http.client.HTTPConnection(host, 80, timeout=5)
        found = []
        for _ in range(times):
            connection.request("GET", "/any?thing", body=b"ignored")
            found.append(json.loads(connection.getresponse().read()))
        connection.close()
        return found

    return netns.run_in(path, call)


def datagram(path: Path, host: str) -> dict[str, Any]:
    """One datagram; a connected socket takes an answer only from the address it called."""

    def call() -> dict[str, Any]:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.connect((host, 53))
            sock.send(b"x")
            answer: dict[str, Any] = json.loads(sock.recv(2000))
            return answer

    return netns.run_in(path, call)


async def test_every_address_of_a_pod_answers(
    client: ResponderClient, pods: tuple[Path, Path]
) -> None:
    """HTTP with keep-alive and UDP, IPv4 and IPv6, first and second address."""
    a, b = pods
    reply = await client.call(Request("serve", "a", str(a), "web-1", "n1", WEB))
    assert (reply.ok, reply.errors) == (True, ())
    for number in "19":
        for host, source, where in (
            (f"192.0.2.{number}", "192.0.2.2", f"192.0.2.{number}"),
            (f"fd00::{number}", "fd00::2", f"[fd00::{number}]"),
        ):
            expected = {"pod": "web-1", "node": "n1", "client": source}
            answers = await asyncio.to_thread(get, b, host, 3)
            assert answers == [{**expected, "server": f"{where}:80"}] * 3
            assert await asyncio.to_thread(datagram, b, host) == {
                **expected,
                "server": f"{where}:53",
            }
    (served,) = (await client.call(Request("list"))).served
    assert (served.answered, served.unsent, served.ports) == (16, 0, WEB)


async def test_two_pods_may_have_the_same_port(
    client: ResponderClient, pods: tuple[Path, Path]
) -> None:
    """Ports are a namespace's own."""
    for name, path in zip("ab", pods, strict=True):
        assert (await client.call(Request("serve", name, str(path), name, "n1", WEB))).ok
    (answer,) = await asyncio.to_thread(get, pods[1], "192.0.2.1")
    assert answer["pod"] == "a"
    (answer,) = await asyncio.to_thread(get, pods[0], "192.0.2.2")
    assert answer["pod"] == "b"


async def test_a_draining_pod_answers_and_asks_to_reconnect(
    client: ResponderClient, pods: tuple[Path, Path]
) -> None:
    """A connection that stays open gets its answer, then the client goes elsewhere."""
    a, b = pods
    with await served_and_connected(client, a, b) as connection:
        assert b"Connection: close" not in await exchange(connection)
        assert (await client.call(Request("drain", "a"))).ok
        assert b"Connection: close" in await exchange(connection)
        assert await asyncio.to_thread(connection.recv, 100) == b""
    assert len(await asyncio.to_thread(get, b, "192.0.2.1")) == 1


async def served_and_connected(client: ResponderClient, a: Path, b: Path) -> socket.socket:
    """Have `web-1` served in namespace `a`, and connect to it from `b`."""
    await client.call(Request("serve", "a", str(a), "web-1", "n1", WEB))
    return await asyncio.to_thread(
        netns.run_in, b, lambda: socket.create_connection(("192.0.2.1", 80), 5)
    )


async def exchange(connection: socket.socket) -> bytes:
    """One GET on a raw connection; the whole response."""

    def call() -> bytes:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        data = b""
        while not data.endswith(b"}"):
            data += connection.recv(4096)
        return data

    return await asyncio.to_thread(call)


async def test_stop_closes_everything(client: ResponderClient, pods: tuple[Path, Path]) -> None:
    """Open connections too: nothing of the responder keeps the namespace alive."""
    a, b = pods
    with await served_and_connected(client, a, b) as connection:
        await exchange(connection)
        assert (await client.call(Request("stop", "a"))).ok
        with pytest.raises(ConnectionResetError):
            await asyncio.to_thread(connection.recv, 100)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.to_thread(get, b, "192.0.2.1")
    assert not (await client.call(Request("stop", "a"))).ok


async def test_serve_again_changes_only_the_difference(
    client: ResponderClient, pods: tuple[Path, Path]
) -> None:
    """A kubelet that restarts says everything again; connections do not notice."""
    a, b = pods
    with await served_and_connected(client, a, b) as connection:
        ports = (Port("TCP", 80), Port("TCP", 81))
        assert (await client.call(Request("serve", "a", str(a), "web-1", "n1", ports))).ok
        await exchange(connection)
    (served,) = (await client.call(Request("list"))).served
    assert served.ports == ports


async def test_a_port_that_cannot_be_opened_is_named_and_the_others_serve(
    client: ResponderClient, pods: tuple[Path, Path]
) -> None:
    """A taken port, and SCTP on a kernel without it, are not fatal."""
    a, b = pods
    taken = netns.run_in(a, lambda: socket.create_server(("0.0.0.0", 81)))
    with taken:
        ports = (Port("TCP", 80), Port("TCP", 81))
        reply = await client.call(Request("serve", "a", str(a), "web-1", "n1", ports))
    assert not reply.ok
    (error,) = reply.errors
    assert "web-1: TCP 0.0.0.0 port 81" in error
    assert len(await asyncio.to_thread(get, b, "192.0.2.1")) == 1


async def test_sctp_answers_or_says_that_the_kernel_has_none(
    client: ResponderClient, pods: tuple[Path, Path]
) -> None:
    """Whichever kernel: an answer, or an error that names the port."""
    a, b = pods
    reply = await client.call(Request("serve", "a", str(a), "p", "n1", (Port("SCTP", 90),)))
    if not reply.ok:
        assert any("SCTP" in error and "not supported" in error for error in reply.errors)
        return

    def call() -> Any:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_SCTP) as sock:
            sock.settimeout(5)
            sock.connect(("192.0.2.1", 90))
            sock.send(b"x")
            return json.loads(sock.recv(2000))

    assert (await asyncio.to_thread(netns.run_in, b, call))["pod"] == "p"


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"garbage\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\n\r\n", b"405"),
        (b"GET / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nContent-Length: -4\r\n\r\n", b"413"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, b"431"),
        (b"GET / HTTP/1.0\r\n\r\n", b"200"),
        (b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"200"),
    ],
)
async def test_bad_and_last_requests_are_answered_then_closed(
    client: ResponderClient, pods: tuple[Path, Path], sent: bytes, status: bytes
) -> None:
    """Garbage gets a status that says so; the listener goes on."""
    a, b = pods
    await client.call(Request("serve", "a", str(a), "web-1", "n1", WEB))

    def call() -> bytes:
        with socket.create_connection(("192.0.2.1", 80), 5) as sock:
            sock.sendall(sent)
            data = b""
            while chunk := sock.recv(4096):
                data += chunk
            return data

    answer = await asyncio.to_thread(netns.run_in, b, call)
    assert answer.startswith(b"HTTP/1.1 " + status)


async def test_a_request_that_does_not_parse_is_refused(client: ResponderClient) -> None:
    """Garbage on the control socket gets an error that says what is wrong."""
    reader, writer = await asyncio.open_unix_connection(str(client._path))
    writer.write(b'{"op":"explode"}\n')
    assert b"Invalid enum value" in await reader.readline()
    writer.close()


async def test_five_thousand_requests_a_second(
    client: ResponderClient, pods: tuple[Path, Path]
) -> None:
    """Pipelined on 8 connections; the rate is printed, only the answers are asserted."""
    a, _ = pods
    await client.call(Request("serve", "a", str(a), "web-1", "n1", WEB))
    request, count = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 2000

    async def one() -> int:
        sock = await asyncio.to_thread(
            netns.run_in, pods[1], lambda: socket.create_connection(("192.0.2.1", 80), 5)
        )
        reader, writer = await asyncio.open_connection(sock=sock)
        for _ in range(count):
            writer.write(request)
            await reader.readuntil(b"}")
        writer.close()
        return count

    begin = time.monotonic()
    answered = sum(await asyncio.gather(*(one() for _ in range(8))))
    rate = answered / (time.monotonic() - begin)
    print(f"\n{rate:.0f} requests/s, client and responder on one machine")
    assert answered == 8 * count
