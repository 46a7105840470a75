"""
The node's own network: its addresses on br-ext, its way to Pods through dunlin-gw0, its neighbours.

A node that loses its address is a node nobody can repair, so what is moved is first written to a
journal, every step is checked by reading back, and a failure puts things back as they were. The
same move brings the addresses home when OVS dies (br-ext then has no carrier) and out again when it
is back. Blocking netlink in one thread; no process.
"""

import asyncio
import contextlib
import errno
import os
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypeVar

import msgspec
import structlog

from dunlin import wire
from dunlin.model.addresses import IPAddress, MacAddress
from dunlin_agent.adapters import rtnetlink as rt
from dunlin_agent.adapters.gateway import GatewaySpec, gateway_requests, route_key, stands
from dunlin_agent.adapters.links import IGNORING_SYSCTLS
from dunlin_agent.adapters.netns import entered, read_sysctl, write_sysctl
from dunlin_agent.adapters.uplink import (
    Address,
    UplinkError,
    UplinkState,
    move_requests,
    read,
    sources,
    up_request,
)

T = TypeVar("T")

NUD_USABLE: Final = 0x02 | 0x04 | 0x08 | 0x10 | 0x80  # reachable, stale, delay, probe, permanent
NTF_USE: Final = 0x01
RTMGRP = {"link": 0x1, "neighbour": 0x4, "address": 0x10 | 0x100, "route": 0x40 | 0x400}
RTMGRP |= {"rule": 0x80 | 0x40000}  # RTNLGRP_IPV4_RULE, RTNLGRP_IPV6_RULE

NODE_SYSCTLS: Final = {
    "net/ipv4/ip_forward": 1,
    "net/ipv4/conf/all/rp_filter": 0,
    "net/ipv6/conf/all/forwarding": 1,
}
# A Pod may reach the node by any of its addresses, and hairpins come back with the node's own
# source.
GATEWAY_SYSCTLS: Final = {
    "net/ipv4/conf/{}/rp_filter": 0,
    "net/ipv4/conf/{}/accept_local": 1,
    "net/ipv6/conf/{}/accept_dad": 0,
    "net/ipv6/conf/{}/accept_ra": 0,
}

log = structlog.get_logger(__name__)


class NodeNetError(Exception):
    """The node's network could not be brought to what was asked; the message says what is true."""


class Journal(msgspec.Struct, frozen=True):
    """What was moved from where; on disk before anything moves."""

    uplink: str
    bridge: str
    state: UplinkState


class Gateway(msgspec.Struct, frozen=True):
    """A default gateway; `mac` None while the kernel has not resolved it."""

    ip: IPAddress
    mac: MacAddress | None


class NodeAddresses(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the node has on one device, which is the uplink or br-ext. `mtu_bytes` of the device.

    `sources`: the addresses that processes may send from now, the main ones first.
    """

    device: str
    mac: MacAddress
    mtu_bytes: int
    addresses: tuple[Address, ...]
    gateways: tuple[Gateway, ...]
    sources: tuple[IPAddress, ...] = ()


class NodeNet:
    """The network of the namespace `netns` (None: of this process)."""

    def __init__(self, journal: Path, netns: Path | None = None) -> None:
        """`journal`: a file that survives the agent, not necessarily the machine."""
        self._journal = journal
        self._netns = netns
        self._netlink = rt.Rtnetlink(netns)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="node-net")

    async def close(self) -> None:
        """Finish what runs; the node's network stays as it is."""
        await asyncio.to_thread(self._thread.shutdown)
        self._netlink.close()

    async def raise_bridge(self, bridge: str) -> None:
        """
        Set the bridge's own device up, without an address.

        Before `take_over`: Open vSwitch hears of it a moment later, and drops what is for a device
        that it believes to be down.

        Raises:
            NodeNetError: no such device, or the kernel refused it.
        """
        await self._run(lambda: self._raise(bridge))

    async def take_over(self, uplink: str, bridge: str) -> UplinkState:
        """
        Have the node's addresses and routes on `bridge` instead of `uplink`.

        Nothing to do is success. The bridge must already forward between the two, and to its own
        device (`raise_bridge`). Afterwards the kernel ignores what it still receives on the uplink.
        Returns what `bridge` now carries.

        Raises:
            NodeNetError: it did not work, and the addresses are on the uplink.
        """
        return await self._run(lambda: self._take_over(uplink, bridge))

    async def give_back(self, uplink: str, bridge: str, *, forget: bool = True) -> None:
        """
        Inverse of `take_over`, also when the bridge is gone with its addresses.

        `forget` removes the journal; without it a later `take_over` knows what belongs together.

        Raises:
            NodeNetError: the uplink could not be given everything.
        """
        await self._run(lambda: self._give_back(uplink, bridge, forget=forget))

    async def configure_gateway(self, spec: GatewaySpec) -> None:
        """
        Give the node its interface to Pods, with routes and sysctls; idempotent.

        Addresses and routes of earlier specs on that interface are removed.

        Raises:
            NodeNetError: no such interface, or the kernel refused something.
        """
        await self._run(lambda: self._configure_gateway(spec))

    async def gateway_stands(self, spec: GatewaySpec) -> bool:
        """
        The interface still has the addresses and routes that `configure_gateway` gave it.

        Raises:
            NodeNetError: no such interface.
        """

        def look() -> bool:
            return stands(spec, read(self._netlink, self._index(spec.ifname), spec.ifname))

        return await self._run(look)

    async def addresses(self, device: str) -> NodeAddresses:
        """
        What the node has on `device`, and its default gateways with their MACs as far as known.

        Raises:
            NodeNetError: no such device.
        """
        return await self._run(lambda: self._addresses(device))

    async def carries(self, device: str) -> bool:
        """
        There is such a device and something at its other end.

        A device of OVS outlives ovs-vswitchd, without carrier.
        """

        def look() -> bool:
            found = self._netlink.link(device)
            # A device that is down says nothing of carrier in its flags, but in IFLA_CARRIER.
            return found is not None and bool(rt.attributes(found).get("IFLA_CARRIER"))

        return await self._run(look)

    async def resolve(self, device: str, ip: IPAddress, timeout_seconds: float = 3.0) -> MacAddress:
        """
        The MAC of a neighbour: makes the kernel ask, and waits for its event.

        Raises:
            NodeNetError: nobody answered for it within `timeout_seconds`.
        """
        try:
            async with asyncio.timeout(timeout_seconds):
                async for _ in self.changes("neighbour"):
                    mac = await self._run(lambda: self._neighbour(device, ip))
                    if mac is not None:
                        return mac
                    await self._run(lambda: self._ask_neighbour(device, ip))
        except TimeoutError as error:
            raise NodeNetError(f"{device}: no MAC for {ip} in {timeout_seconds:g} s") from error
        raise AssertionError

    async def changes(self, *kinds: str) -> AsyncGenerator[frozenset[str], None]:
        """
        Yield at once, and then whenever the kernel reports changes of these kinds (default: all).

        Kinds: link, address, route, neighbour, rule. Changes that come together are one; if the
        kernel's queue overflowed, it is all kinds. The receiver reads the state anew.
        """
        wanted = frozenset(kinds or RTMGRP)
        loop = asyncio.get_running_loop()
        happened = asyncio.Event()
        found: set[str] = set()
        with rt.Rtnetlink(self._netns, sum(RTMGRP[kind] for kind in wanted)) as source:
            loop.add_reader(source.fileno(), _note_events, source, wanted, found, happened)
            try:
                yield wanted
                while True:
                    await happened.wait()
                    happened.clear()
                    changed = frozenset(found)
                    found.clear()
                    yield changed
            finally:
                loop.remove_reader(source.fileno())

    async def _run(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _named, function)

    # --- in the thread ----------------------------------------------------------------------------

    def _raise(self, bridge: str) -> None:
        with self._inside():
            write_sysctl(f"net/ipv6/conf/{bridge}/accept_dad", 0)
        self._netlink.apply(up_request(self._index(bridge), bridge))

    def _take_over(self, uplink: str, bridge: str) -> UplinkState:
        source, target = self._index(uplink), self._index(bridge)
        state = self._union(read(self._netlink, source, uplink), uplink, bridge)
        if not state.addresses:
            present = read(self._netlink, target, bridge)
            if present.addresses:
                self._ignore(uplink)
                return present
            raise NodeNetError(f"neither {uplink} nor {bridge} nor the journal has an address")
        self._write(Journal(uplink, bridge, state))
        try:
            self._netlink.apply(*move_requests(state, source, target))
            self._verify(state, target, bridge)
            self._ignore(uplink)
        except (OSError, NodeNetError, UplinkError) as error:
            self._back(state, uplink, target)
            raise NodeNetError(f"{uplink} keeps its addresses: {error}") from error
        return state

    def _union(self, present: UplinkState, uplink: str, bridge: str) -> UplinkState:
        """
        What belongs to the node: what the uplink has now, else what the journal remembers.

        A bridge that already has addresses needs nothing of the journal: they may have changed.
        """
        target = self._netlink.link(bridge)
        on_bridge = read(self._netlink, target["index"], bridge) if target else UplinkState()
        journal = self._read()
        if present.addresses or on_bridge.addresses or journal is None:
            return present
        return journal.state if journal.uplink == uplink else present

    def _give_back(self, uplink: str, bridge: str, *, forget: bool) -> None:
        found = self._netlink.link(bridge)
        journal = self._read()
        state = UplinkState() if found is None else read(self._netlink, found["index"], bridge)
        if not state.addresses:
            present = read(self._netlink, self._index(uplink), uplink)
            if present.addresses or journal is None:
                self._heed(uplink)
                return
            state = journal.state
        self._back(state, uplink, None if found is None else found["index"])
        self._verify(state, self._index(uplink), uplink)
        if forget:
            self._journal.unlink(missing_ok=True)

    def _back(self, state: UplinkState, uplink: str, source: int | None) -> None:
        """Everything to the uplink, as far as it goes: each request is tried."""
        self._heed(uplink)
        try:
            self._netlink.apply(*move_requests(state, source, self._index(uplink)))
        except rt.RtnetlinkError:
            log.exception("could not give the uplink everything back", uplink=uplink)

    def _verify(self, state: UplinkState, index: int, name: str) -> None:
        """Read back: requests that each succeeded may have undone each other."""
        actual = read(self._netlink, index, name)
        missing = {address.interface for address in state.addresses} - {
            address.interface for address in actual.addresses
        }
        routes = {route_key(route) for route in state.routes}
        missing_routes = routes - {route_key(route) for route in actual.routes}
        if missing or missing_routes:
            lost = ", ".join(map(str, (*missing, *missing_routes)))
            raise NodeNetError(f"{name} lacks {lost}")

    def _ignore(self, uplink: str) -> None:
        """Frames on the uplink reach OVS, and no IP stack beside br-ext's."""
        with self._inside():
            for name, value in IGNORING_SYSCTLS.items():
                write_sysctl(name.format(uplink), value)

    def _heed(self, uplink: str) -> None:
        """Undo `_ignore`."""
        with self._inside():
            for name in IGNORING_SYSCTLS:
                default = read_sysctl(name.format("default"))
                write_sysctl(name.format(uplink), default)

    def _configure_gateway(self, spec: GatewaySpec) -> None:
        index = self._index(spec.ifname)
        with self._inside():
            for name, value in NODE_SYSCTLS.items():
                write_sysctl(name, value)
            for name, value in GATEWAY_SYSCTLS.items():
                write_sysctl(name.format(spec.ifname), value)
        present = read(self._netlink, index, spec.ifname)
        self._netlink.apply(*gateway_requests(spec, present, index))

    def _addresses(self, device: str) -> NodeAddresses:
        index = self._index(device)
        attrs = rt.attributes(self._netlink.link(device))
        state = read(self._netlink, index, device)
        hops = {route.gateway for route in state.routes if route.dst.prefixlen == 0}
        gateways = tuple(
            Gateway(hop, self._neighbour(device, hop))
            for hop in sorted((hop for hop in hops if hop), key=lambda hop: (hop.version, int(hop)))
        )
        return NodeAddresses(
            device=device,
            mac=attrs["IFLA_ADDRESS"],
            mtu_bytes=attrs["IFLA_MTU"],
            addresses=state.addresses,
            gateways=gateways,
            sources=sources(self._netlink, index),
        )

    def _neighbour(self, device: str, ip: IPAddress) -> MacAddress | None:
        index = self._index(device)
        family = rt.family_of(ip)
        for message in self._netlink.dump(rt.RTM_GETNEIGH, rt.neighbour_message(family=family)):
            attrs = rt.attributes(message)
            usable = message["state"] & NUD_USABLE and "NDA_LLADDR" in attrs
            if message["ifindex"] == index and attrs.get("NDA_DST") == str(ip) and usable:
                return MacAddress(attrs["NDA_LLADDR"])
        return None

    def _ask_neighbour(self, device: str, ip: IPAddress) -> None:
        """As if the kernel had a packet for it."""
        message = rt.neighbour_message(
            [("NDA_DST", str(ip))],
            family=rt.family_of(ip),
            ifindex=self._index(device),
            flags=NTF_USE,
        )
        flags = rt.NLM_F_CREATE | rt.NLM_F_REPLACE
        self._netlink.apply(rt.Request(rt.RTM_NEWNEIGH, flags, message, f"ask for {ip}"))

    def _index(self, device: str) -> int:
        found = self._netlink.link(device)
        if found is None:
            raise NodeNetError(f"no device {device}")
        index: int = found["index"]
        return index

    def _inside(self) -> contextlib.AbstractContextManager[None]:
        return entered(self._netns)

    # --- the journal ------------------------------------------------------------------------------

    def _read(self) -> Journal | None:
        try:
            return wire.decode(self._journal.read_bytes(), Journal)
        except FileNotFoundError:
            return None
        except msgspec.MsgspecError:
            log.exception("the uplink journal is damaged", path=str(self._journal))
            return None

    def _write(self, journal: Journal) -> None:
        """Whole or not at all, and on disk before this returns."""
        self._journal.parent.mkdir(parents=True, exist_ok=True)
        beside = self._journal.with_suffix(".new")
        with beside.open("wb") as file:
            file.write(wire.encode(journal))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self._journal)


def _named(function: Callable[[], T]) -> T:
    """The kernel's refusals under our own name."""
    try:
        return function()
    except (OSError, UplinkError) as error:
        raise NodeNetError(str(error)) from error


def _note_events(
    source: rt.Rtnetlink, wanted: frozenset[str], found: set[str], happened: asyncio.Event
) -> None:
    """Read what the kernel reports; an overflow means that anything may have changed."""
    names = {16: "link", 17: "link", 20: "address", 21: "address"}
    names |= {24: "route", 25: "route", 28: "neighbour", 29: "neighbour"}
    names |= {32: "rule", 33: "rule"}
    try:
        found.update(names[kind] for kind, _ in source.events() if names.get(kind) in wanted)
    except OSError as error:
        if error.errno != errno.ENOBUFS:
            raise
        found.update(wanted)
    if found:
        happened.set()
