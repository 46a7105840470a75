"""What differs between IPv4 and IPv6 in a flow: field names and Ethernet types."""

from dataclasses import dataclass
from functools import lru_cache

from dunlin.events.facts import Protocol
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin.openflow.fields import ETH_IPV4, ETH_IPV6, IP_SCTP, IP_TCP, IP_UDP
from dunlin.openflow.flow import FieldMatch, Match, MatchValue, in_order, match
from dunlin.pipeline.layout import HAIRPIN_V4, HAIRPIN_V6

PROTOCOL_NUMBERS = {Protocol.TCP: IP_TCP, Protocol.UDP: IP_UDP, Protocol.SCTP: IP_SCTP}


@dataclass(frozen=True, slots=True)
class Family:
    """One IP version in the words of ovs-fields(7)."""

    version: int
    eth_type: int
    src: str
    dst: str
    hairpin: IPAddress

    @property
    def any(self) -> Match:
        """Every packet of this family."""
        return _any(self.eth_type)

    def to(self, destination: IPAddress | IPNetwork) -> Match:
        """Packets to an address or network of this family."""
        return _one(self.eth_type, self.dst, destination)

    def from_(self, source: IPAddress | IPNetwork) -> Match:
        """Packets from an address or network of this family."""
        return _one(self.eth_type, self.src, source)

    def to_port(self, destination: IPAddress, protocol: Protocol, port: int) -> Match:
        """Packets to one transport port of an address; of fragments the first alone."""
        address = FieldMatch(self.dst, int(destination))
        return in_order((*_any(self.eth_type), address, *to_l4_port(protocol, port)))

    def first_to_port(self, destination: IPAddress, protocol: Protocol, port: int) -> Match:
        """New connections to one transport port of an address."""
        address = FieldMatch(self.dst, int(destination))
        return in_order((*_any(self.eth_type), address, *first_to_l4_port(protocol, port)))


V4 = Family(4, ETH_IPV4, "nw_src", "nw_dst", HAIRPIN_V4)
V6 = Family(6, ETH_IPV6, "ipv6_src", "ipv6_dst", HAIRPIN_V6)
FAMILIES = (V4, V6)


@lru_cache(maxsize=1 << 15)
def _one(eth_type: int, field: str, value: IPAddress | IPNetwork) -> Match:
    """One and the same value for all switches: each has a route to every node."""
    return match(eth_type=eth_type, **{field: value})


def family_of(value: IPAddress | IPNetwork) -> Family:
    """The family of an address or network."""
    return V4 if value.version == 4 else V6


def family_of_version(version: int) -> Family:
    """The family of IP version 4 or 6."""
    return V4 if version == 4 else V6


@lru_cache(maxsize=4)
def _any(eth_type: int) -> Match:
    return match(eth_type=eth_type)


@lru_cache(maxsize=1 << 12)
def to_l4_port(protocol: Protocol, port: MatchValue) -> Match:
    """Packets of a protocol to a transport port, or (value, mask) of ports; without an eth_type."""
    name = f"{protocol.value.lower()}_dst"
    return match(nw_proto=PROTOCOL_NUMBERS[protocol], **{name: port})


@lru_cache(maxsize=1 << 12)
def first_to_l4_port(protocol: Protocol, port: int) -> Match:
    """New connections of a protocol to a transport port; without an eth_type."""
    # Open vSwitch forgets ct_tp_dst in a match that does not say ct_nw_proto.
    return (*first_of(protocol), *match(ct_tp_dst=port))


def first_of(protocol: Protocol) -> Match:
    """
    New connections of a protocol; without an eth_type.

    By what conntrack saw: of a datagram in fragments only the first one has ports (and, in IPv6,
    the protocol) where a switch looks for them, but all of them have the original tuple of the
    whole, which ct() has put together.
    """
    return match(ct_state="+trk+new", ct_nw_proto=PROTOCOL_NUMBERS[protocol])
