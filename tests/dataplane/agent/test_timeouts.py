"""Closed TCP connections are remembered by a real Open vSwitch for as long as the agent says."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from dunlin.bus.memory import MemoryBus, MemoryServer
from dunlin.events.facts import SwitchFact
from dunlin.events.intents import SwitchIntent
from dunlin.model.addresses import GATEWAY_MAC, derived_mac
from dunlin.pipeline.layout import Zone
from dunlin.service.metrics import Metrics
from dunlin_agent import core
from dunlin_agent.adapters.links import PodLinks
from dunlin_agent.adapters.ovsdb import Ovs
from dunlin_agent.adapters.vswitchd import Vswitchd
from dunlin_agent.facts import Facts
from dunlin_agent.metrics import AgentMetrics
from dunlin_agent.timeouts.core import ZonePolicy
from dunlin_agent.timeouts.shell import ClosedConnections
from tests.dataplane.agent.ovs_node import OvsNode, run
from tests.dataplane.agent.pods import pod_bridges, pod_link, pod_port
from tests.scenario.worlds import until

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(shutil.which("ovs-vswitchd") is None, reason="needs Open vSwitch"),
]
DEADLINE_S = 30.0
# Far from Open vSwitch's own 30 and 45, so that no load of the machine can blur which one it is.
SECONDS, OPERATORS = 3000, 2000
OWN_SECONDS = 45
CLOSED = "(?:FIN_WAIT_2|TIME_WAIT)"
MAIN, HAIRPIN, OTHER = int(Zone.MAIN), int(Zone.HAIRPIN), int(Zone.EXTERNAL)

# The server closes first, as where a port used again would meet its TIME_WAIT.
SERVER = """
import socket
tcp = socket.create_server(("", 9000)); print("ready", flush=True)
while True: tcp.accept()[0].close()
"""
CLIENT = """
import socket
tcp = socket.create_connection(("10.1.0.3", 9000), 10)
assert tcp.recv(1) == b""; print(tcp.getsockname()[1])
"""


class Site:
    """A node with two Pods, whose connections are committed to three zones."""

    def __init__(self, node: OvsNode, ovs: Ovs) -> None:
        self.node, self.ovs = node, ovs
        self.vswitchd = Vswitchd(node.rundir)
        metrics = AgentMetrics(Metrics("agent", "0"))
        self.metrics = metrics
        self.facts = Facts(MemoryBus(MemoryServer()), "n", metrics, now_ms=lambda: 1)
        self._ofports: list[tuple[str, str, int]] = []

    async def build(self) -> None:
        """Bridge, Pods, flows."""
        links = PodLinks(self.node.netns)
        await self.ovs.ensure(pod_bridges())
        for k in (1, 2):
            link = pod_link(self.node.add_pod(f"p{k}"), k)
            await links.create(link)
            ofport = await self.ovs.add_pod_port("br-int", pod_port(link, k))
            self._ofports.append((str(link.ips[0]), link.mac, ofport))
        await links.close()
        self.flows()

    def flows(self) -> None:
        """Lost by each restart of ovs-vswitchd."""
        commit = ",".join(f"ct(commit,zone={zone})" for zone in (MAIN, HAIRPIN, OTHER))
        for ip, mac, ofport in self._ofports:
            there = f"set_field:{mac}->eth_dst,set_field:{GATEWAY_MAC}->eth_src,output:{ofport}"
            flow = f"tcp,nw_dst={ip},actions={commit},{there}"
            self.node.ofctl("add-flow", "br-int", flow)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A server in the second Pod."""
        command = ["ip", "netns", "exec", f"{self.node.name}-p2", sys.executable, "-c", SERVER]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield
        finally:
            server.kill()
            server.communicate()

    async def observed(self) -> str:
        """The node is set up; the life of its ovs-vswitchd."""
        await self.vswitchd.wait_ready()
        life = self.vswitchd.incarnation()
        mac = derived_mac("router")
        fact = SwitchFact(
            name="n", dpid=1, router_mac=mac, uplink_mac=mac, gateway_port=1, incarnation=life
        )
        self.facts.emit(core.SwitchObserved(fact))
        return life

    async def remembered(self) -> dict[int, int]:
        """Zone -> for how many seconds more it remembers a connection closed just now."""
        port = run(sys.executable, "-c", CLIENT, netns=f"{self.node.name}-p1").strip()
        found: dict[int, int] = {}
        pattern = re.compile(rf"sport={port}.*zone=(\d+).*timeout=(\d+).*\(state={CLOSED}\)")

        async with asyncio.timeout(DEADLINE_S):
            while len(found) < 3:
                dump = await self.vswitchd.call("dpctl/dump-conntrack", "-s", "netdev@ovs-netdev")
                lines = (pattern.search(line) for line in dump.splitlines())
                found = {int(line[1]): int(line[2]) for line in lines if line}
        return found

    async def policies(self, reached: Callable[[dict[int, ZonePolicy]], bool]) -> None:
        """Wait until the zones' policies are so."""
        async with asyncio.timeout(DEADLINE_S):
            while not reached(found := await self.ovs.timeouts()):
                await self.ovs.timeouts_changed(found)

    async def in_force(self, *zones: int, seconds: int = SECONDS) -> None:
        """
        Wait until new connections are remembered in these zones alone for that long.

        The datapath's flows are turned over by other threads than those that took the policy.
        """
        async with asyncio.timeout(DEADLINE_S):
            while True:
                found = await self.remembered()
                long = {zone for zone, left in found.items() if seconds - 60 < left <= seconds}
                short = {zone for zone, left in found.items() if left <= OWN_SECONDS}
                if long == set(zones) and short == set(found) - long:
                    return


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    """One that stands, with a server."""
    with OvsNode(f"agtt-{uuid.uuid4().hex[:5]}") as node:
        ovs = Ovs(node.remote)
        await ovs.start()
        site = Site(node, ovs)
        await site.build()
        with site.serving():
            yield site
        await ovs.close()


@asynccontextmanager
async def keeping(
    site: Site, seconds: int = SECONDS, *, null_nat: bool = True
) -> AsyncIterator[ClosedConnections]:
    """The agent's part that does it; it must not fail meanwhile."""
    closed = ClosedConnections(site.ovs, site.facts, seconds, site.metrics)
    closed.put(intent(null_nat=null_nat), 1)
    task = asyncio.create_task(closed.run())
    try:
        yield closed
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def intent(*, null_nat: bool) -> SwitchIntent:
    """What the planner says of the node's Open vSwitch."""
    mac = derived_mac("router")
    return SwitchIntent(
        scope="n", key="pipeline", dpid=1, router_mac=mac, gateway_port=1, null_nat=null_nat
    )


def of_life(life: str, *zones: int) -> Callable[[dict[int, ZonePolicy]], bool]:
    """These zones have our last word of that life of ovs-vswitchd, and no others have any."""
    return lambda found: (
        {zone: policy.mark for zone, policy in found.items()} == dict.fromkeys(zones, life)
    )


@pytest.mark.timeout(120)
async def test_in_force_and_kept(site: Site) -> None:
    """In both zones, after a restart of ovs-vswitchd, and when somebody removed it; else not."""
    life = await site.observed()
    await site.in_force()
    async with keeping(site):
        await site.policies(of_life(life, MAIN, HAIRPIN))
        await site.in_force(MAIN, HAIRPIN)
        site.node.kill("ovs-vswitchd")
        site.node.start_vswitchd()
        # ovs-vsctl waits until the new process has made its bridges.
        site.node.vsctl("set", "Open_vSwitch", ".", "external_ids:again=true")
        site.flows()
        life = await site.observed()
        await site.policies(of_life(life, MAIN, HAIRPIN))
        await site.in_force(MAIN, HAIRPIN)
        site.node.vsctl("del-zone-tp", "netdev", f"zone={MAIN}")
        await site.policies(of_life(life, MAIN, HAIRPIN))
        await site.in_force(MAIN, HAIRPIN)


@pytest.mark.timeout(120)
async def test_not_where_it_would_harm(site: Site) -> None:
    """Without null_nat the main zone forgets as before, also when it had our policy."""
    life = await site.observed()
    async with keeping(site) as closed:
        await site.policies(of_life(life, MAIN, HAIRPIN))
        closed.put(intent(null_nat=False), 2)
        await site.policies(of_life(life, HAIRPIN))
        await site.in_force(HAIRPIN)


@pytest.mark.timeout(120)
async def test_an_operators_policy_stays(site: Site) -> None:
    """It is left alone and counted; the other zone is ours; once it is removed, both are."""
    vsctl = site.node.vsctl
    vsctl(
        "--", "--id=@d", "create", "Datapath", "datapath_version=0",
        "--", "set", "Open_vSwitch", ".", "datapaths:netdev=@d",
    )  # fmt: skip
    vsctl("add-zone-tp", "netdev", f"zone={MAIN}", f"tcp_close={OPERATORS - 1}")
    row = vsctl("--bare", "--columns=_uuid", "list", "CT_Timeout_Policy").strip()
    vsctl("set", "CT_Timeout_Policy", row, f"timeouts:tcp_close={OPERATORS}")
    life = await site.observed()
    theirs = ZonePolicy(timeouts={"tcp_close": OPERATORS}, mark="")
    async with keeping(site):
        await site.policies(
            lambda found: (
                found.get(MAIN) == theirs and HAIRPIN in found and found[HAIRPIN].mark == life
            )
        )
        await until(
            lambda: (zones(site, "operator"), zones(site)) == (1, 1),
            "it is counted",
            timeout_s=DEADLINE_S,
        )
        found = await site.remembered()
        assert OPERATORS - 60 < found[MAIN] <= OPERATORS
        vsctl("del-zone-tp", "netdev", f"zone={MAIN}")
        await site.policies(of_life(life, MAIN, HAIRPIN))
        await until(
            lambda: (zones(site, "operator"), zones(site)) == (0, 2),
            "it is ours",
            timeout_s=DEADLINE_S,
        )
        # As docs/tune.md has it.
        vsctl("--may-exist", "add-zone-tp", "netdev", f"zone={MAIN}", "tcp_close=60")
        await until(
            lambda: (zones(site, "operator"), zones(site)) == (1, 1),
            "theirs again",
            timeout_s=DEADLINE_S,
        )
        assert (await site.ovs.timeouts())[MAIN].timeouts == {"tcp_close": 60}


@pytest.mark.timeout(120)
async def test_written_once_and_taken_back(site: Site) -> None:
    """Another start of the agent writes nothing; 0 removes what is ours and nothing else."""
    life = await site.observed()
    async with keeping(site):
        await site.policies(of_life(life, MAIN, HAIRPIN))
        await until(lambda: zones(site) == 2, "it is told", timeout_s=DEADLINE_S)
    written = site.node.vsctl("get", "Open_vSwitch", ".", "next_cfg")
    both = frozenset({MAIN, HAIRPIN})
    assert of_life(life, *both)(await site.ovs.ensure_timeouts(both, SECONDS, life))
    assert site.node.vsctl("get", "Open_vSwitch", ".", "next_cfg") == written
    site.node.vsctl("add-zone-tp", "netdev", "zone=7", "udp_first=9")
    async with keeping(site, 0):
        await site.policies(lambda found: set(found) == {7})
        await site.in_force()
    assert site.node.vsctl("--bare", "--columns=external_ids", "list", "CT_Zone").strip() == ""


def zones(site: Site, owner: str = "dunlin") -> float | None:
    """The metric."""
    name = "dunlin_agent_closed_connection_zones"
    return site.metrics.common.registry.get_sample_value(name, {"owner": owner})
