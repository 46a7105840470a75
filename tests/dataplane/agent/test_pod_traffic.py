"""Two Pods on one node: attached by the adapters, joined by hand-written flows."""

import os
import shutil
import subprocess
import sys
import uuid

import pytest

from dunlin_agent.adapters.links import PodLinks
from dunlin_agent.adapters.ovsdb import Ovs
from tests.dataplane.agent.ovs_node import OvsNode, run
from tests.dataplane.agent.pods import forward, pod_bridges, pod_link, pod_port

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(shutil.which("ovs-vswitchd") is None, reason="needs Open vSwitch"),
]

# Serve one TCP transfer of 2 MB each way and one UDP datagram; 7 is the status of success.
SERVER = """
import socket, sys
udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); udp.bind(("::", 9001))
tcp = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
tcp.settimeout(15); udp.settimeout(15); print("ready", flush=True)
for _ in range(2):
    conn, _ = tcp.accept(); got = 0
    while got < 2_000_000: got += len(conn.recv(65536))
    conn.sendall(b"x" * 2_000_000); conn.close()
    data, peer = udp.recvfrom(4096); udp.sendto(data, peer)
"""
CLIENT = """
import socket, sys
for host in sys.argv[1:]:
    conn = socket.create_connection((host, 9000), 10); conn.sendall(b"y" * 2_000_000); got = 0
    while chunk := conn.recv(65536): got += len(chunk)
    assert got == 2_000_000, got
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    udp = socket.socket(family, socket.SOCK_DGRAM); udp.settimeout(5)
    udp.sendto(b"hello", (host, 9001)); assert udp.recv(99) == b"hello"
print("all good")
"""


@pytest.mark.parametrize("tso", [False, True], ids=["tx off", "userspace-tso"])
async def test_ping_tcp_and_udp_between_pods(*, tso: bool) -> None:
    """Both ways of attaching carry ping, TCP and UDP over IPv4 and IPv6, full MTU included."""
    with OvsNode(f"agtp-{uuid.uuid4().hex[:5]}", userspace_tso=tso) as node:
        ovs, links = Ovs(node.remote), PodLinks(node.netns)
        await ovs.start()
        await ovs.ensure(pod_bridges())
        assert (await ovs.state()).userspace_tso is tso
        pods = [pod_link(node.add_pod(f"p{k}"), k, offload=tso) for k in (1, 2)]
        for k, pod in enumerate(pods, 1):
            await links.create(pod)
            forward(node, pod, await ovs.add_pod_port("br-int", pod_port(pod, k)))
        first, second = f"{node.name}-p1", f"{node.name}-p2"
        hosts = [str(ip) for ip in pods[1].ips]
        for host, payload in zip(hosts, ("1422", "1402"), strict=True):
            ping = ("ping", "-c", "2", "-i", "0.05", "-W", "2", "-M", "do", "-s", payload, host)
            assert " 0% packet loss" in run(*ping, netns=first)
        server = subprocess.Popen(  # noqa: ASYNC220 - a test's own server
            ["ip", "netns", "exec", second, sys.executable, "-c", SERVER], stdout=subprocess.PIPE
        )
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            assert "all good" in run(sys.executable, "-c", CLIENT, *hosts, netns=first)
        finally:
            server.kill()
            server.wait()
            if server.stdout is not None:
                server.stdout.close()
        await links.close()
        await ovs.close()
        assert [line for line in node.log().splitlines() if "|WARN|" in line] == []


async def test_default_offload_would_be_dead() -> None:
    """The oracle can fail: with the Pod's checksum offload left on, ping works and TCP does not."""
    with OvsNode(f"agtp-{uuid.uuid4().hex[:5]}") as node:
        ovs, links = Ovs(node.remote), PodLinks(node.netns)
        await ovs.start()
        await ovs.ensure(pod_bridges())
        pods = [pod_link(node.add_pod(f"p{k}"), k) for k in (1, 2)]
        for k, pod in enumerate(pods, 1):
            await links.create(pod)
            run("ethtool", "-K", "eth0", "tx", "on", netns=pod.netns.name)
            forward(node, pod, await ovs.add_pod_port("br-int", pod_port(pod, k)))
        assert " 0% packet loss" in run("ping", "-c", "1", "10.1.0.3", netns=pods[0].netns.name)
        client = "import socket\nsocket.create_connection(('10.1.0.3', 9000), 1.5)"
        listen = run(sys.executable, "-c", client, netns=pods[0].netns.name, check=False)
        assert listen == ""
        # A closed port answers with RST when the SYN is intact; here nothing ever comes back.
        counters = run("nstat", "-az", "TcpInCsumErrors", netns=pods[1].netns.name).split()
        assert int(counters[counters.index("TcpInCsumErrors") + 1]) > 0
        await links.close()
        await ovs.close()
