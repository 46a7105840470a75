"""
Keeping the node set up: bridges, the node's addresses on br-ext, its way to Pods.

One loop: establish everything, then wait until something gives reason to look again. When
ovs-vswitchd dies the node's addresses go home to the uplink first, and out again when it is back.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, Literal

import structlog

from dunlin.events.facts import NextHop, NodeAddress, SwitchFact
from dunlin.events.rpc import Blocks
from dunlin.model.addresses import (
    GATEWAY_MAC,
    IPAddress,
    derived_dpid,
    derived_mac,
    host_network,
)
from dunlin.pipeline.families import FAMILIES
from dunlin_agent import core
from dunlin_agent.adapters.controllers import Controllers
from dunlin_agent.adapters.gateway import GatewaySpec
from dunlin_agent.adapters.ipam import Ipam, IpamError
from dunlin_agent.adapters.node_net import NodeAddresses, NodeNet, NodeNetError
from dunlin_agent.adapters.ovs_spec import (
    EXTERNAL_BRIDGE,
    GATEWAY_PORT,
    PATCH_TO_EXTERNAL,
    TUNNEL_PORT,
    ControllerSpec,
    SslSpec,
    node_bridges,
    pod_mtu_bytes,
)
from dunlin_agent.adapters.ovsdb import Ovs, PortError
from dunlin_agent.adapters.ovsdb_session import OvsdbError
from dunlin_agent.adapters.vswitchd import Vswitchd, VswitchdError
from dunlin_agent.config import Settings
from dunlin_agent.facts import Facts
from dunlin_agent.metrics import AgentMetrics

READY_SECONDS: Final = 10.0
CARRIER_SECONDS: Final = 10.0
IPAM_SECONDS: Final = 5.0
RESOLVE_SECONDS: Final = 2.0
SETTLE_SECONDS: Final = 0.2
RETRY_MIN_SECONDS: Final = 0.2
RETRY_MAX_SECONDS: Final = 5.0

FAILURES = (OvsdbError, PortError, NodeNetError, VswitchdError, IpamError)

log = structlog.get_logger(__name__)


class Node:
    """The set-up of one node."""

    def __init__(
        self,
        settings: Settings,
        facts: Facts,
        ovs: Ovs,
        net: NodeNet,
        vswitchd: Vswitchd,
        ipam: Ipam,
        metrics: AgentMetrics,
    ) -> None:
        self._settings = settings
        self._facts = facts
        self._ovs = ovs
        self._net = net
        self._vswitchd = vswitchd
        self._ipam = ipam
        self._metrics = metrics
        self._seen: NodeAddresses | None = None
        self._internal_ips: tuple[IPAddress, ...] = ()
        self._gateway: GatewaySpec | None = None
        self._mourned: str | None = None
        self._told_of_tso = ""
        self._controllers = Controllers(settings.openflow_controllers)
        self._targets: tuple[str, ...] = ()
        self.reason: str | None = "still setting the node up"

    def not_ready(self) -> str | None:
        """Why no Pod can be attached now, or None."""
        if not self._ovs.connected:
            return "no session with ovsdb-server"
        return self.reason

    async def run(self) -> None:
        """Establish, wait, look again; for ever."""
        pause = RETRY_MIN_SECONDS
        while True:
            try:
                fact = await self._establish()
            except FAILURES as error:
                self.reason = str(error)
                self._metrics.setup_failures.labels(type(error).__name__).inc()
                log.warning("node not set up", error=str(error))
                await self._first(self._vswitchd_ended(), asyncio.sleep(pause))
                pause = min(pause * 2, RETRY_MAX_SECONDS)
                continue
            pause = RETRY_MIN_SECONDS
            self.reason = None
            self._tell_of_tso(fact)
            self._facts.emit(core.SwitchObserved(fact))
            await self._first(
                self._vswitchd_ended(),
                self._addresses_changed(),
                self._blocks_changed(),
                self._internal_ips_changed(),
                self._tunnel_changed(fact.tunnel_type),
                self._controllers.changed(self._targets),
            )

    def _tell_of_tso(self, fact: SwitchFact) -> None:
        """Once for each life of ovs-vswitchd."""
        told, self._told_of_tso = self._told_of_tso, fact.incarnation
        if told == fact.incarnation:
            return
        if not core.keeps_peers_mtu(fact.ovs_version, userspace_tso=fact.userspace_tso):
            self._metrics.common.unsupported("node", "userspace-tso")
            log.warning(
                "TCP to peers of a smaller MTU will be slow: userspace-tso of this Open vSwitch "
                "cuts segments to the uplink's MTU; use 3.5 or later, or switch it off",
                ovs_version=fact.ovs_version,
            )

    # --- establish --------------------------------------------------------------------------------

    async def _establish(self) -> SwitchFact:
        try:
            async with asyncio.timeout(READY_SECONDS):
                await self._vswitchd.wait_ready()
        except TimeoutError as error:
            raise VswitchdError("ovs-vswitchd does not answer") from error
        incarnation = self._vswitchd.incarnation()
        uplink = self._settings.uplink
        before = await self._net.addresses(uplink) if uplink else None
        tunnel = self._tunnel(before)
        self._targets = await self._controllers.resolve()
        pod_mtu = self._pod_mtu(before, tunnel)
        await self._ensure_bridges(before, tunnel, pod_mtu)
        if uplink:
            await self._carrier(EXTERNAL_BRIDGE)
            await self._net.raise_bridge(EXTERNAL_BRIDGE)
            await self._ovs.until_up(EXTERNAL_BRIDGE)
            await self._net.take_over(uplink, EXTERNAL_BRIDGE)
            self._seen = await self._net.addresses(EXTERNAL_BRIDGE)
        blocks = await self._ipam.blocks(IPAM_SECONDS)
        self._internal_ips = self._facts.state.internal_ips
        self._gateway = self._gateway_spec(blocks, pod_mtu)
        await self._net.configure_gateway(self._gateway)
        return await self._switch_fact(blocks, tunnel, pod_mtu, incarnation)

    def _tunnel(self, found: NodeAddresses | None) -> Literal["", "geneve", "vxlan"]:
        seen = self._seen or found
        own = tuple(address.ip for address in seen.addresses) if seen else ()
        return core.tunnel_of(self._settings.encapsulation, own, self._facts.state)

    def _pod_mtu(self, uplink: NodeAddresses | None, tunnel: str) -> int:
        if self._settings.pod_mtu or uplink is None:
            return self._settings.pod_mtu or 1500
        seen = self._seen or uplink
        only_ipv6 = all(address.ip.version == 6 for address in seen.addresses)
        return pod_mtu_bytes(
            uplink.mtu_bytes,
            encapsulated=bool(tunnel),
            ipv6_underlay=bool(seen.addresses) and only_ipv6,
        )

    async def _ensure_bridges(
        self, uplink: NodeAddresses | None, tunnel: Literal["", "geneve", "vxlan"], pod_mtu: int
    ) -> None:
        bridges = node_bridges(
            self._settings.node,
            controllers=tuple(ControllerSpec(target=target) for target in self._targets),
            uplink=self._settings.uplink or None,
            uplink_mac=uplink.mac if uplink else None,
            gateway_mac=derived_mac("router", self._settings.node),
            pod_mtu=pod_mtu,
            uplink_mtu=uplink.mtu_bytes if uplink else 1500,
            tunnel=tunnel,
        )
        await self._ovs.ensure(bridges, ssl=self._ssl())

    def _ssl(self) -> SslSpec | None:
        """What OVS shows and trusts on ssl: connections; None leaves its own settings alone."""
        found = self._settings
        if not found.openflow_cert:
            return None
        return SslSpec(
            private_key=found.openflow_key,
            certificate=found.openflow_cert,
            ca_cert=found.openflow_ca,
        )

    async def _carrier(self, device: str) -> None:
        """Wait until OVS serves the device: addresses on it would else be dead."""
        try:
            async with asyncio.timeout(CARRIER_SECONDS):
                async for _ in self._net.changes("link"):
                    if await self._net.carries(device):
                        return
        except TimeoutError as error:
            raise NodeNetError(f"{device} has no carrier") from error

    def _gateway_spec(self, blocks: Blocks, pod_mtu: int) -> GatewaySpec:
        pods = blocks.pod_cidrs or self._settings.pod_cidrs
        services = blocks.service_cidrs or self._settings.service_cidrs
        hairpins = tuple(host_network(family.hairpin) for family in FAMILIES)
        first = {gateway.version: gateway for gateway in reversed(blocks.gateways)}
        return GatewaySpec(
            ifname=GATEWAY_PORT,
            ips=tuple(first[version] for version in sorted(first)),
            sources=core.sources_of(self._seen.sources if self._seen else (), self._internal_ips),
            cidrs=(*pods, *services, *hairpins),
            router_mac=GATEWAY_MAC,
            mtu_bytes=pod_mtu,
        )

    async def _switch_fact(
        self, blocks: Blocks, tunnel: Literal["", "geneve", "vxlan"], pod_mtu: int, incarnation: str
    ) -> SwitchFact:
        ports = {state.name: state for state in await self._ovs.interfaces()}
        state = await self._ovs.state()
        seen = self._seen
        return SwitchFact(
            name=self._settings.node,
            dpid=derived_dpid(self._settings.node),
            router_mac=derived_mac("router", self._settings.node),
            uplink_mac=seen.mac if seen else derived_mac("router", self._settings.node),
            gateway_port=ports[GATEWAY_PORT].ofport,
            uplink_port=ports[PATCH_TO_EXTERNAL].ofport if PATCH_TO_EXTERNAL in ports else 0,
            tunnel_port=ports[TUNNEL_PORT].ofport if TUNNEL_PORT in ports else 0,
            tunnel_type=tunnel,
            gateway_ips=blocks.gateways,
            addresses=tuple(
                NodeAddress(ip=address.ip, subnet=address.interface.network)
                for address in (seen.addresses if seen else ())
            ),
            next_hops=await self._next_hops(),
            mtu=pod_mtu,
            ovs_version=await self._vswitchd.version(),
            datapath="dpdk" if state.dpdk_initialized else "netdev",
            userspace_tso=state.userspace_tso,
            incarnation=incarnation,
        )

    async def _next_hops(self) -> tuple[NextHop, ...]:
        """Those that answer; one that does not is left out, and looked for again."""
        hops = []
        for gateway in self._seen.gateways if self._seen else ():
            try:
                mac = gateway.mac or await self._net.resolve(
                    EXTERNAL_BRIDGE, gateway.ip, RESOLVE_SECONDS
                )
            except NodeNetError as error:
                log.warning("default gateway does not answer", error=str(error))
            else:
                hops.append(NextHop(ip=gateway.ip, mac=mac))
        return tuple(hops)

    # --- reasons to look again --------------------------------------------------------------------

    async def _first(self, *reasons: Coroutine[Any, Any, None]) -> None:
        """Wait for one of them; a failure of a wait is a reason too."""
        tasks = [asyncio.create_task(reason) for reason in reasons]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in done:
            error = task.exception()
            if error is not None and not isinstance(error, FAILURES):
                raise error

    async def _vswitchd_ended(self) -> None:
        """Bring the node's addresses home as soon as OVS is dead; once for each of its lives."""
        await self._vswitchd.wait_gone()
        life = self._vswitchd.last_incarnation()
        if life == self._mourned:
            await asyncio.Event().wait()
        self._mourned = life
        self.reason = "ovs-vswitchd has ended"
        self._metrics.vswitchd_restarts.inc()
        log.warning("ovs-vswitchd has ended")
        uplink = self._settings.uplink
        if uplink:
            await self._net.give_back(uplink, EXTERNAL_BRIDGE, forget=False)
            log.info("the node's addresses are on the uplink", uplink=uplink)

    async def _addresses_changed(self) -> None:
        """The node's own addresses, default routes, MACs of its gateways, or its way to Pods."""
        if not self._settings.uplink:
            await asyncio.Event().wait()
        known = self._seen
        async for _ in self._net.changes("address", "route", "neighbour"):
            await asyncio.sleep(SETTLE_SECONDS)
            found = await self._net.addresses(EXTERNAL_BRIDGE)
            if _without_macs(found) != _without_macs(known) or _new_macs(found, known):
                return
            if self._gateway is not None and not await self._net.gateway_stands(self._gateway):
                return

    async def _blocks_changed(self) -> None:
        await self._facts.blocks_pulse.take().wait()

    async def _internal_ips_changed(self) -> None:
        """The Node's InternalIPs: what its processes send from is one of them, if it can be."""
        used = self._internal_ips
        await self._facts.pulse.until(lambda: self._facts.state.internal_ips != used)

    async def _tunnel_changed(self, tunnel: str) -> None:
        await self._facts.pulse.until(lambda: self._tunnel(None) != tunnel)


def _without_macs(found: NodeAddresses | None) -> object:
    if found is None:
        return None
    hops = tuple(gateway.ip for gateway in found.gateways)
    return (found.addresses, found.sources, hops, found.mtu_bytes)


def _new_macs(found: NodeAddresses, known: NodeAddresses | None) -> bool:
    """A gateway has another MAC than before, or one at last; that it has none now says nothing."""
    old = {gateway.ip: gateway.mac for gateway in known.gateways} if known else {}
    return any(
        gateway.mac is not None and gateway.mac != old.get(gateway.ip) for gateway in found.gateways
    )
