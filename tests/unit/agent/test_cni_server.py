"""The agent's CNI server: decoding, dispatch, order, error objects, results of each version."""

import asyncio
import json
import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin_agent.cni import (
    CniError,
    CniErrorCode,
    CniRequest,
    CniServer,
    Interface,
    IpConfig,
    Result,
    Route,
    wire,
)
from tests.unit.agent.executable import ADD_ENVIRONMENT, Call, build, call

RESULT = Result(
    interfaces=(
        Interface("dun1", "02:00:00:00:00:01"),
        Interface("eth0", "02:00:00:00:00:02", "/run/netns/pod", mtu_bytes=1450),
    ),
    ips=(
        IpConfig(ip_interface("10.1.0.2/32"), ip_address("10.1.0.1"), 1),
        IpConfig(ip_interface("fd00::2/128"), ip_address("fd00::1"), 1),
    ),
    routes=(Route(ip_network("0.0.0.0/0"), ip_address("10.1.0.1"), 1450),),
)


class Network:
    """A PodNetwork that does as told and notes what it was asked."""

    def __init__(self) -> None:
        """Everything succeeds at first."""
        self.calls: list[CniRequest] = []
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = 0
        self.most_running = 0

    async def add(self, request: CniRequest) -> Result:
        """Attach."""
        await self._note(request)
        return RESULT

    async def delete(self, request: CniRequest) -> None:
        """Detach."""
        await self._note(request)

    async def check(self, request: CniRequest) -> None:
        """Verify."""
        await self._note(request)

    async def gc(self, request: CniRequest) -> None:
        """Collect."""
        await self._note(request)

    async def status(self, request: CniRequest) -> None:
        """Ready."""
        await self._note(request)

    async def _note(self, request: CniRequest) -> None:
        self.calls.append(request)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        await self.gate.wait()
        self.running -= 1
        if self.error is not None:
            raise self.error


class Bench:
    """A server on a socket, its network, and what it observed."""

    def __init__(self, folder: Path) -> None:
        """Not yet listening."""
        self.path = folder / "agent.sock"
        self.network = Network()
        self.observed: list[tuple[str, int]] = []
        self.server = CniServer(
            self.path, self.network, lambda command, code, _: self.observed.append((command, code))
        )

    async def call(self, command: str, conf: dict[str, Any], **environment: str) -> Call:
        """Call by the real executable."""
        stdin = json.dumps({"cniVersion": "1.1.0", "name": "n", "type": "t"} | conf).encode()
        words = ADD_ENVIRONMENT | {"DUNLIN_AGENT_SOCKET": str(self.path)} | environment
        return await asyncio.to_thread(call, build("dunlin-cni"), command, stdin, **words)

    async def raw(self, data: bytes) -> bytes:
        """Send bytes as they are and return everything that comes back."""
        reader, writer = await asyncio.open_unix_connection(self.path)
        writer.write(data)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        return answer


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder whose path leaves room in sun_path."""
    with tempfile.TemporaryDirectory(prefix="cni") as name:
        yield Path(name)


@pytest.fixture
async def bench(folder: Path) -> AsyncIterator[Bench]:
    """A server that listens."""
    bench = Bench(folder)
    await bench.server.start()
    yield bench
    await bench.server.stop()


@pytest.mark.parametrize("version", ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
async def test_add_gives_a_result_of_the_version_asked_for(bench: Bench, version: str) -> None:
    """Families are named before 1.0.0, MTUs from 1.1.0; everything else is the same."""
    got = await bench.call("ADD", {"cniVersion": version})
    assert got.status == 0
    body = got.body
    assert body["cniVersion"] == version
    assert [ip.get("version") for ip in body["ips"]] == (
        ["4", "6"] if version.startswith("0") else [None, None]
    )
    assert body["ips"][0]["address"] == "10.1.0.2/32"
    assert body["ips"][1]["gateway"] == "fd00::1"
    assert body["interfaces"][1].get("mtu") == (1450 if version == "1.1.0" else None)
    assert body["interfaces"][1]["sandbox"] == "/run/netns/pod"
    assert bench.network.calls[0].pod == ("shop", "web-1")


async def test_each_command_reaches_its_function(bench: Bench) -> None:
    """DEL, CHECK, GC and STATUS print nothing on success."""
    gc = {"cni.dev/valid-attachments": [{"containerID": "a", "ifname": "eth0"}]}
    for command, conf in (("DEL", {}), ("CHECK", {}), ("GC", gc), ("STATUS", {})):
        got = await bench.call(command, conf)
        assert (got.status, got.stdout) == (0, b"")
    assert [request.command for request in bench.network.calls] == ["DEL", "CHECK", "GC", "STATUS"]
    attachments = bench.network.calls[2].conf.valid_attachments
    assert attachments is not None
    assert attachments[0].container_id == "a"
    assert bench.observed == [("DEL", 0), ("CHECK", 0), ("GC", 0), ("STATUS", 0)]


async def test_delete_needs_no_netns(bench: Bench) -> None:
    """DEL of a container whose namespace is gone arrives with netns None."""
    assert (await bench.call("DEL", {}, CNI_NETNS="")).status == 0
    assert bench.network.calls[0].netns is None


@pytest.mark.parametrize(
    ("command", "conf", "environment", "code"),
    [
        pytest.param("ADD", {"name": ""}, {}, 7, id="empty name"),
        pytest.param("ADD", {"name": 3}, {}, 7, id="name no string"),
        pytest.param("GC", {}, {}, 7, id="GC without attachments"),
        pytest.param("GC", {"cni.dev/valid-attachments": 1}, {}, 7, id="attachments no list"),
        pytest.param("GC", {"cniVersion": "1.0.0"}, {}, 1, id="GC before 1.1.0"),
        pytest.param("STATUS", {"cniVersion": "0.4.0"}, {}, 1, id="STATUS before 1.1.0"),
        pytest.param("CHECK", {"cniVersion": "0.3.1"}, {}, 1, id="CHECK before 0.4.0"),
        pytest.param("ADD", {}, {"CNI_CONTAINERID": "../x"}, 4, id="container id"),
        pytest.param("ADD", {}, {"CNI_IFNAME": "a/b"}, 4, id="slash in ifname"),
        pytest.param("ADD", {}, {"CNI_IFNAME": "x" * 16}, 4, id="long ifname"),
        pytest.param("ADD", {}, {"CNI_IFNAME": ".."}, 4, id="dots"),
        pytest.param("ADD", {}, {"CNI_ARGS": "K8S_POD_NAME"}, 4, id="args without ="),
    ],
)
async def test_bad_requests_are_refused_by_code(
    bench: Bench, command: str, conf: dict[str, Any], environment: dict[str, str], code: int
) -> None:
    """What the executable lets through and the specification does not, the agent refuses."""
    got = await bench.call(command, conf, **environment)
    assert (got.status, got.body["code"]) == (1, code), got.body
    assert bench.network.calls == []
    assert [observed for _, observed in bench.observed] == [code]


async def test_errors_of_the_network_are_told_word_for_word(bench: Bench) -> None:
    """A CniError keeps its code and words, in the version of the request."""
    bench.network.error = CniError(CniErrorCode.TRY_AGAIN_LATER, "no address", "pod shop/web-1")
    got = await bench.call("ADD", {"cniVersion": "0.3.1"})
    assert got.body == {
        "cniVersion": "0.3.1",
        "code": 11,
        "msg": "no address",
        "details": "pod shop/web-1",
    }


async def test_surprises_are_reported_and_the_server_goes_on(bench: Bench) -> None:
    """Any other exception names the Pod and the error, and the next call works."""
    bench.network.error = ZeroDivisionError("oops")
    got = await bench.call("ADD", {})
    assert got.body["code"] == CniErrorCode.INTERNAL
    assert "shop/web-1" in got.body["details"]
    assert "ZeroDivisionError" in got.body["details"]
    bench.network.error = None
    assert (await bench.call("ADD", {})).status == 0


async def test_calls_for_one_container_take_turns(bench: Bench) -> None:
    """Same container: one at a time; different containers: side by side."""
    bench.network.gate.clear()
    same = [asyncio.create_task(bench.call("ADD", {})) for _ in range(3)]
    other = asyncio.create_task(bench.call("ADD", {}, CNI_CONTAINERID="other"))
    async with asyncio.timeout(10):
        while bench.network.running < 2:
            await asyncio.sleep(0.005)
    bench.network.gate.set()
    assert [got.status for got in await asyncio.gather(*same, other)] == [0, 0, 0, 0]
    assert bench.network.most_running == 2


async def test_garbage_on_the_socket(bench: Bench) -> None:
    """Bytes that are no frame, no JSON or no request get an error reply; the server goes on."""
    for data in (b"", b"\0", b"\xff" * 8, wire.frame(b"{}"), wire.frame(b"\xff")):
        reply = await bench.raw(data)
        assert json.loads(reply[4:])["exit"] == 1
    assert (await bench.call("STATUS", {})).status == 0


async def test_socket_is_for_root_alone(bench: Bench) -> None:
    """Nobody else may ask for an interface: the socket has mode 0600."""
    assert stat.S_IMODE(bench.path.stat().st_mode) == 0o600


async def test_a_dead_socket_is_replaced_and_a_living_one_is_not(folder: Path) -> None:
    """After kill -9 the next agent listens; a second agent beside a living one does not."""
    first, second = Bench(folder), Bench(folder)
    await first.server.start()
    with pytest.raises(OSError, match="another agent"):
        await second.server.start()
    await first.server.stop()
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(str(first.path))
    await second.server.start()
    assert (await second.call("STATUS", {})).status == 0
    await second.server.stop()


@given(st.dictionaries(st.text("abcK_8", min_size=1), st.text("xyz=1", max_size=5), max_size=5))
def test_cni_args_round_trip(pairs: dict[str, str]) -> None:
    """Values may hold "="; what was written as KEY=VALUE;… is read back."""
    text = ";".join(f"{key}={value}" for key, value in pairs.items())
    assert wire.decode_args(text) == pairs
