"""Packets of a Pod wait for a busy ovs-vswitchd: what it preloads, on a real one (ADR 0043)."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from dunlin_lab import netns, preload
from tests.dataplane.agent.ovs_node import OvsNode, run, wait_for

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(shutil.which("ovs-vswitchd") is None, reason="needs Open vSwitch"),
]

BURST, PAYLOAD = 400, b"x" * 1400
"""Twice the kernel's default buffer and more, a tenth of ours."""
SO_RCVBUFFORCE = 33
PORT = 9000
SIZE = "DUNLIN_OVS_PACKET_BUFFER_KIB"


@contextmanager
def two_pods(more: Mapping[str, str]) -> Iterator[OvsNode]:
    """Two Pods, of 10.9.0.1 and 10.9.0.2, on a bridge that forwards everything."""
    with OvsNode(f"agtb-{uuid.uuid4().hex[:5]}", userspace_tso=True, more=more) as node:
        node.vsctl("add-br", "br0", "--", "set", "bridge", "br0", "datapath_type=netdev")
        for number in (1, 2):
            pod = node.add_pod(f"p{number}").name
            peer = ("type", "veth", "peer", "name", f"p{number}", "netns", node.name)
            run("ip", "link", "add", "eth0", *peer, netns=pod)
            run("ip", "link", "set", f"p{number}", "up", netns=node.name)
            run("ip", "link", "set", "eth0", "up", netns=pod)
            run("ip", "address", "add", f"10.9.0.{number}/24", "dev", "eth0", netns=pod)
            node.vsctl("add-port", "br0", f"p{number}")
        ping = ("ping", "-c1", "-W1", "10.9.0.2")
        wait_for(lambda: "1 received" in run(*ping, netns=f"{node.name}-p1", check=False), "a ping")
        yield node


def socket_in(place: str) -> socket.socket:
    """For datagrams."""
    return netns.run_in(
        Path("/run/netns", place), lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    )


def arrived(node: OvsNode) -> int:
    """How many of a burst arrive that was sent while ovs-vswitchd was stopped."""
    pid = int((node.rundir / "ovs-vswitchd.pid").read_text())
    with socket_in(f"{node.name}-p2") as server, socket_in(f"{node.name}-p1") as client:
        server.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
        server.bind(("10.9.0.2", PORT))
        os.kill(pid, signal.SIGSTOP)
        try:
            for _ in range(BURST):
                client.sendto(PAYLOAD, ("10.9.0.2", PORT))
        finally:
            os.kill(pid, signal.SIGCONT)
        # The last word comes after all that waited before it; it may be lost itself while they do.
        client.settimeout(0.1)
        server.settimeout(0.1)
        return len(list(until_the_end(client, server)))


def until_the_end(client: socket.socket, server: socket.socket) -> Iterator[bytes]:
    """What comes before an "end" that is sent again until it does."""
    for _ in range(200):
        client.sendto(b"end", ("10.9.0.2", PORT))
        try:
            while (found := server.recv(2048)) != b"end":
                yield found
        except TimeoutError:
            continue
        return
    raise AssertionError("no end within 20 s")


def test_a_burst_waits_for_a_busy_switch() -> None:
    """Nothing of 400 datagrams is lost that come while ovs-vswitchd does something else."""
    with two_pods(preload.environment()) as node:
        assert arrived(node) == BURST


@pytest.mark.parametrize("preloaded", [False, True], ids=["nothing preloaded", "size 0"])
def test_the_burst_is_lost_without(*, preloaded: bool) -> None:
    """The test above can fail: the kernel's own buffer is too small for the same burst."""
    with two_pods({**preload.environment(), SIZE: "0"} if preloaded else {}) as node:
        assert arrived(node) < BURST


def test_a_wrong_size_is_said() -> None:
    """The default is taken and standard error names the setting."""
    more = {**preload.environment(), SIZE: "4M"}
    program = "import socket; print(socket.socket(17, 3).getsockopt(1, 8))"
    command, env = [sys.executable, "-c", program], os.environ | more
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert int(done.stdout) == 2 * 4096 * 1024
    assert f"{SIZE}=4M" in done.stderr
