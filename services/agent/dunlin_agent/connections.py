"""
rpc.agent.connections.<node>: live connections of this node's Pods, from conntrack.

Read from ovs-vswitchd over its control socket when somebody asks; no process is started.
Source: ovs-vswitchd(8) `dpctl/dump-conntrack`; ovs's lib/ct-dpif.c for the form of an entry.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Container, Iterator
from ipaddress import ip_address
from typing import Final

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Bus, BusError
from dunlin.events.rpc import Connections, ConnectionsRequest, Failure, LiveConnection
from dunlin.model.addresses import IPAddress
from dunlin.pipeline.layout import DENIED, Zone
from dunlin_agent.adapters.vswitchd import Vswitchd, VswitchdError

log = structlog.get_logger(__name__)

RETRY_S: Final = 0.5
_ENTRY: Final = re.compile(
    r"(?P<protocol>[\w-]+),orig=\(src=(?P<source>[^,)]+),(?P<orig>[^)]*)\),"
    r"reply=\(src=(?P<endpoint>[^,)]+),(?P<reply>[^)]*)\)(?P<rest>.*)"
)
_PORT: Final = re.compile(r"(?:^|,)sport=(\d+)")
_MARK: Final = re.compile(r",mark=(0x[0-9a-f]+|\d+)")
_STATE: Final = re.compile(r"state(?:_orig)?=([A-Z_0-9]+)")
_ENDED: Final = frozenset({
    "CLOSING", "CLOSED", "TIME_WAIT", "FIN_WAIT_1", "FIN_WAIT_2", "CLOSE_WAIT", "LAST_ACK",
    "SYN_SENT", "SYN_RECV",
})  # fmt: skip
Key = tuple[str, IPAddress, IPAddress, int]


def connections(dump: str, ips: Container[IPAddress] | None = None) -> Counter[Key]:
    """
    Connections that are up, by (protocol, client, endpoint, port).

    Denied ones are not, nor TCP that begins or ends. `ips`: only where one of these has a part.
    """
    found: Counter[Key] = Counter()
    for key in _entries(dump):
        if ips is None or key[1] in ips or key[2] in ips:
            found[key] += 1
    return found


def _entries(dump: str) -> Iterator[Key]:
    for line in dump.splitlines():
        entry = _ENTRY.match(line)
        if entry is None:
            if line.strip():
                log.warning("an entry of conntrack that cannot be read", entry=line[:200])
            continue
        mark, state = _MARK.search(entry["rest"]), _STATE.search(entry["rest"])
        if mark is not None and int(mark[1], 0) & DENIED.mask == DENIED.value:
            continue
        if entry["protocol"] == "tcp" and state is not None and state[1] in _ENDED:
            continue
        # What answers is the endpoint, whatever the client asked for.
        port = _PORT.search(entry["reply"])
        yield (
            "ICMP" if entry["protocol"].startswith("icmp") else entry["protocol"].upper(),
            ip_address(entry["source"]),
            ip_address(entry["endpoint"]),
            int(port[1]) if port is not None else 0,
        )


class ConnectionServer:
    """Answers for one node."""

    def __init__(self, bus: Bus, node: str, vswitchd: Vswitchd) -> None:
        self._bus = bus
        self._node = node
        self._vswitchd = vswitchd

    async def serve(self) -> None:
        """Subscribe, as soon as there is a bus; the subscription outlives every reconnection."""
        subject = subjects.rpc("agent", "connections", self._node)
        while True:
            try:
                await self._bus.serve(subject, self._handle)
            except BusError as error:
                log.warning("connections are not served yet", error=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _handle(self, _subject: str, data: bytes) -> bytes:
        try:
            request = wire.decode(data, ConnectionsRequest)
        except (msgspec.DecodeError, ValueError) as error:
            return wire.encode(Failure(reason=f"connections request: {error}"))
        try:
            dump = await self._vswitchd.call("dpctl/dump-conntrack", f"zone={int(Zone.MAIN)}")
        except VswitchdError as error:
            return wire.encode(Failure(reason=str(error), retry=True))
        wanted = frozenset(request.ips) or None
        # A million entries take seconds: CNI calls and health must not wait for them.
        found = await asyncio.to_thread(connections, dump, wanted)
        items = [LiveConnection(protocol=p, source=s, destination=d, port=n, count=count)
                 for (p, s, d, n), count in found.most_common(request.limit)]  # fmt: skip
        reply = Connections(node=self._node, items=tuple(items), truncated=len(found) > len(items))
        return wire.encode(reply)
