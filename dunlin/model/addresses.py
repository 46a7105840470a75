"""IPv4 and IPv6 alike: every address in Dunlin is one of these types, never text."""

import hashlib
import ipaddress
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING, NewType

if TYPE_CHECKING:
    IPAddress = IPv4Address | IPv6Address
    IPNetwork = IPv4Network | IPv6Network
else:
    # msgspec takes one custom type in a field, not a union of two: the common bases stand in.
    IPAddress = ipaddress._BaseAddress  # noqa: SLF001 - no public common base
    IPNetwork = ipaddress._BaseNetwork  # noqa: SLF001 - no public common base


MacAddress = NewType("MacAddress", str)
"""Lower-case, colon-separated: `0e:00:5e:00:00:01`."""

GATEWAY_MAC = MacAddress("0e:00:64:75:6e:01")
"""The MAC of the gateway of every Pod on every node: one for all, so that megaflows stay wide."""


def parse_mac(text: str) -> MacAddress:
    """
    The canonical form of a MAC address.

    Raises:
        ValueError: not six octets in hexadecimal.
    """
    octets = text.lower().replace("-", ":").split(":")
    if len(octets) != 6 or any(len(octet) not in (1, 2) for octet in octets):
        raise ValueError(f"not a MAC address: {text!r}")
    return MacAddress(":".join(f"{int(octet, 16):02x}" for octet in octets))


def mac_to_int(mac: MacAddress) -> int:
    """48-bit number of a MAC address."""
    return int(mac.replace(":", ""), 16)


def mac_from_int(value: int) -> MacAddress:
    """Inverse of `mac_to_int`; `value` is 0 … 2**48 - 1."""
    text = f"{value:012x}"
    return MacAddress(":".join(text[i : i + 2] for i in range(0, 12, 2)))


def derived_mac(*parts: str) -> MacAddress:
    """A locally administered unicast MAC, a function of `parts` alone (46 bits of SHA-256)."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    first = (digest[0] & 0xFC) | 0x02
    return mac_from_int(int.from_bytes(bytes([first]) + digest[1:6], "big"))


def derived_dpid(node: str) -> int:
    """The datapath id of a node's integration bridge: 64 bits of SHA-256 of its name, not 0."""
    return int.from_bytes(hashlib.sha256(b"dpid\0" + node.encode()).digest()[:8], "big") or 1


def host_network(address: IPv4Address | IPv6Address) -> IPv4Network | IPv6Network:
    """The /32 or /128 of one address."""
    return ipaddress.ip_network(address)
