"""OVSDB with a real ovsdb-server and ovs-vswitchd: bridges, Pod ports, restarts of either."""

import asyncio
import os
import shutil
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import msgspec
import pytest

from dunlin.model.addresses import derived_mac
from dunlin_agent.adapters.links import PodLinks
from dunlin_agent.adapters.ovs_spec import (
    GATEWAY_OFPORT,
    TUNNEL_OFPORT,
    BridgeSpec,
    ControllerSpec,
    node_bridges,
)
from dunlin_agent.adapters.ovsdb import Ovs, PortError
from dunlin_agent.adapters.ovsdb_session import OvsdbError
from dunlin_agent.adapters.vswitchd import Vswitchd, VswitchdError
from tests.dataplane.agent.ovs_node import OvsNode, run
from tests.dataplane.agent.pods import pod_link, pod_port

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
    pytest.mark.skipif(shutil.which("ovs-vswitchd") is None, reason="needs Open vSwitch"),
]


NOWHERE = Path("/run/netns/nowhere")


@pytest.fixture
def node() -> Iterator[OvsNode]:
    """A node with OVS and a device eth0 for an uplink."""
    with OvsNode(f"agto-{uuid.uuid4().hex[:5]}") as node:
        run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "far", netns=node.name)
        yield node


@pytest.fixture
async def ovs(node: OvsNode) -> AsyncIterator[Ovs]:
    """A session with that node."""
    ovs = Ovs(node.remote)
    await ovs.start()
    yield ovs
    await ovs.close()


def bridges(tunnel: str = "geneve") -> tuple[BridgeSpec, ...]:
    """Dunlin's node."""
    return node_bridges(
        "node-1.example",
        controllers=(ControllerSpec(target="tcp:127.0.0.1:6653"),),
        uplink="eth0",
        uplink_mac=derived_mac("uplink"),
        gateway_mac=derived_mac("gateway"),
        pod_mtu=1450,
        tunnel=tunnel,  # type: ignore[arg-type]
    )


async def test_bridges_are_as_specified(node: OvsNode, ovs: Ovs) -> None:
    """Datapath type, fail mode, dpid, controller, numbered ports; again changes nothing."""
    await ovs.ensure(bridges())
    before = node.vsctl("get", "Open_vSwitch", ".", "next_cfg")
    assert node.vsctl("get", "Bridge", "br-int", "datapath_type").strip() == "netdev"
    assert node.vsctl("get-fail-mode", "br-int").strip() == "secure"
    assert node.vsctl("get-fail-mode", "br-ext").strip() == "standalone"
    assert node.vsctl("get", "Bridge", "br-int", "datapath_id").strip(' "\n') in (
        node.vsctl("get", "Bridge", "br-int", "other_config:datapath-id")
    )
    ports = {state.name: state for state in await ovs.interfaces()}
    assert ports["dunlin-gw0"].ofport == GATEWAY_OFPORT
    assert ports["dunlin-tun"].ofport == TUNNEL_OFPORT
    assert ports["dunlin-gw0"].mac_in_use == derived_mac("gateway")
    assert ports["br-ext"].mac_in_use == derived_mac("uplink")
    assert list(await ovs.controllers_connected()) == ["tcp:127.0.0.1:6653"]
    rows = node.vsctl("list", "Bridge"), node.vsctl("list", "Interface", "dunlin-tun")
    await ovs.ensure(bridges())
    assert (node.vsctl("list", "Bridge"), node.vsctl("list", "Interface", "dunlin-tun")) == rows
    assert node.vsctl("get", "Open_vSwitch", ".", "next_cfg") == before
    await ovs.ensure(bridges(tunnel=""))
    assert "dunlin-tun" not in {state.name for state in await ovs.interfaces()}


async def test_a_device_that_is_not_there_is_named(ovs: Ovs) -> None:
    """An uplink or a Pod port without a device fails with OVS's words, and is not left behind."""
    await ovs.ensure(bridges())
    port = msgspec.structs.replace(pod_port(pod_link(NOWHERE, 1), 1), port_name="nosuch")
    with pytest.raises(PortError, match=r"nosuch.*No such device"):
        await ovs.add_pod_port("br-int", port)
    assert await ovs.pod_ports() == ()
    with pytest.raises(OvsdbError, match="no bridge br-nowhere"):
        await ovs.add_pod_port("br-nowhere", port)


async def test_pod_ports_survive_everything(node: OvsNode, ovs: Ovs) -> None:
    """The record of a Pod is read back whole, also after restarts of vswitchd and ovsdb-server."""
    await ovs.ensure(bridges())
    links, vswitchd = PodLinks(node.netns), Vswitchd(node.rundir)
    expected = []
    for k in (1, 2):
        link = pod_link(node.add_pod(f"p{k}"), k)
        await links.create(link)
        ofport = await ovs.add_pod_port("br-int", pod_port(link, k))
        expected.append(msgspec.structs.replace(pod_port(link, k), ofport=ofport))
    expected.sort(key=lambda port: port.port_name)
    assert await ovs.pod_ports() == tuple(expected)

    incarnation = vswitchd.incarnation()
    watch = asyncio.create_task(vswitchd.wait_gone())
    await vswitchd.call("version")
    node.kill("ovs-vswitchd")
    await asyncio.wait_for(watch, 5)
    with pytest.raises(VswitchdError):
        await vswitchd.call("version")
    node.start_vswitchd()
    await asyncio.wait_for(vswitchd.wait_ready(), 10)
    assert vswitchd.incarnation() != incarnation
    node.kill("ovsdb-server")
    node.start_ovsdb()
    assert await ovs.pod_ports() == tuple(expected)

    await ovs.delete_ports("br-int", *(port.port_name for port in expected), "never-there")
    await ovs.delete_ports("br-int", expected[0].port_name)
    assert await ovs.pod_ports() == ()
    await links.close()


async def test_lost_and_found_sessions_are_reported(node: OvsNode) -> None:
    """The agent hears of a lost ovsdb-server and of its return; a change waits for the return."""
    heard: asyncio.Queue[bool] = asyncio.Queue()
    ovs = Ovs(node.remote, heard.put_nowait)
    await ovs.start()
    assert await asyncio.wait_for(heard.get(), 5)
    node.kill("ovsdb-server")
    assert not await asyncio.wait_for(heard.get(), 5)
    change = asyncio.create_task(ovs.ensure((BridgeSpec(name="br-late"),)))
    node.start_ovsdb()
    assert await asyncio.wait_for(heard.get(), 5)
    await asyncio.wait_for(change, 10)
    assert node.vsctl("br-exists", "br-late") == ""
    await ovs.close()


async def test_tunnel_neighbours_are_seeded(node: OvsNode, ovs: Ovs) -> None:
    """tnl/arp/set by the control socket, IPv4 and IPv6; a refusal has OVS's words."""
    await ovs.ensure(bridges())
    vswitchd = Vswitchd(node.rundir)
    link = pod_link(NOWHERE, 1)
    for ip in link.ips:
        await vswitchd.set_neighbour("br-ext", ip, link.mac)
    shown = await vswitchd.call("tnl/neigh/show")
    assert all(f"{ip} " in shown and link.mac in shown for ip in link.ips)
    assert (await vswitchd.version())[0].isdigit()
    with pytest.raises(VswitchdError, match="nonsense"):
        await vswitchd.call("nonsense")
