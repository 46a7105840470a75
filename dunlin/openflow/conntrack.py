"""
Connection tracking as Open vSwitch's userspace datapath does it, for tracing: zones, NAT, marks.

A connection is new until a packet of the reply direction has been seen: one-way UDP stays new for
ever, as in OVS. Left out, and refused by the tracer: ICMP errors (+rel), fragments, time-outs,
TCP's states.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

from dunlin.openflow.fields import CT_STATE_BITS
from dunlin.openflow.flow import Nat
from dunlin.openflow.packet import (
    CannotTrace,
    Packet,
    address_fields,
    is_icmp_error,
    port_fields,
    read,
)


class Tuple(NamedTuple):
    """One direction of a connection; ports are 0 where the protocol has none."""

    family: int
    proto: int
    src: int
    dst: int
    src_port: int
    dst_port: int

    @property
    def reverse(self) -> "Tuple":
        """The other direction."""
        return Tuple(self.family, self.proto, self.dst, self.src, self.dst_port, self.src_port)


@dataclass(frozen=True, slots=True)
class Connection:
    """
    One entry.

    `orig`: the first packet as it came; `reply`: an answer as it comes, before it is translated
    back. `nat`: "src", "dst" or "".
    """

    zone: int
    orig: Tuple
    reply: Tuple
    nat: str = ""
    replied: bool = False
    mark: int = 0
    label: int = 0


class Conntrack:
    """All zones of one switch."""

    def __init__(self) -> None:
        self._connections: dict[tuple[int, Tuple], Connection] = {}
        self._replies: dict[tuple[int, Tuple], Tuple] = {}

    def copy(self) -> "Conntrack":
        """Independent of this one from now on."""
        other = Conntrack()
        other._connections = dict(self._connections)
        other._replies = dict(self._replies)
        return other

    @property
    def connections(self) -> tuple[Connection, ...]:
        """In order of commitment."""
        return tuple(self._connections.values())

    def find(self, zone: int, key: Tuple) -> tuple[Connection, bool] | None:
        """The connection that a packet belongs to, and whether in the reply direction."""
        connection = self._connections.get((zone, key))
        if connection is not None:
            return connection, False
        orig = self._replies.get((zone, key))
        return None if orig is None else (self._connections[zone, orig], True)

    def put(self, connection: Connection) -> None:
        """Add, or replace the one of the same original tuple."""
        self.remove(connection)
        self._connections[connection.zone, connection.orig] = connection
        self._replies[connection.zone, connection.reply] = connection.orig

    def remove(self, connection: Connection) -> None:
        """Forget; nothing if it is not there."""
        old = self._connections.pop((connection.zone, connection.orig), None)
        if old is not None:
            self._replies.pop((old.zone, old.reply), None)

    def flush(self, which: Callable[[Connection], bool] = lambda _: True) -> None:
        """Forget all connections that `which` names."""
        for connection in self.connections:
            if which(connection):
                self.remove(connection)

    def translated(self, connection: Connection, nat: Nat) -> Connection:
        """
        The new connection with the translation of a nat(src|dst=…).

        nat(src) keeps the source's address: all that can change is the port, where another
        connection has the same reply.

        The first address is taken. A source port stays as it is if no range is given and no other
        connection has it; of a range the first free one is taken, where OVS takes one by a hash.

        Raises:
            CannotTrace: no port is free, or nat(dst) without an address.
        """
        orig = connection.orig
        address = int(nat.address) if nat.address is not None else orig.src
        if nat.address is None and nat.direction == "dst":
            raise CannotTrace(f"{nat}: without address")
        if nat.direction == "dst":
            port = nat.port_min or orig.dst_port
            reply = orig._replace(dst=address, dst_port=port).reverse
            return replace(connection, reply=reply, nat="dst")
        low = nat.port_min or (1024 if orig.src_port else 0)
        high = (nat.port_max or nat.port_min or 65535) if orig.src_port else 0
        ports = [*([] if nat.port_min else [orig.src_port]), *range(low, high + 1)]
        for port in ports:
            reply = orig._replace(src=address, src_port=port).reverse
            if self.find(connection.zone, reply) is None:
                return replace(connection, reply=reply, nat="src")
        raise CannotTrace(f"{nat}: every port is taken")


def tuple_of(values: Packet) -> Tuple:
    """
    The direction that a packet goes.

    Raises:
        CannotTrace: not IP, or an ICMP error, which belongs to the connection that it is about.
    """
    if is_icmp_error(values):
        raise CannotTrace("conntrack of an ICMP error")
    src, dst = address_fields(values)
    ports = port_fields(values)
    return Tuple(
        read(values, "eth_type"),
        read(values, "nw_proto"),
        read(values, src),
        read(values, dst),
        read(values, ports[0]) if ports else 0,
        read(values, ports[1]) if ports else 0,
    )


def state_of(connection: Connection | None, *, reply: bool) -> int:
    """ct_state before any translation."""
    state = CT_STATE_BITS["trk"]
    if connection is None:
        return state | CT_STATE_BITS["new"]
    if reply:
        return state | CT_STATE_BITS["est"] | CT_STATE_BITS["rpl"]
    return state | CT_STATE_BITS["est" if connection.replied else "new"]
