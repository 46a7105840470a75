"""Which cluster addresses and node ports are taken, and the choice of a free one."""

from __future__ import annotations

import random
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

NODE_PORTS = range(30000, 32768)
_TRIES = 64


class ExhaustedError(Exception):
    """Nothing is left to give."""


class AddressPool:
    """
    The addresses of one Service CIDR.

    The network address and, in IPv4, the broadcast address are never given; the first usable one
    belongs to default/kubernetes and is given only when asked for by name.
    """

    def __init__(self, cidr: Network) -> None:
        """Everything is free."""
        self.cidr = cidr
        self.used: set[Address] = set()

    @property
    def first(self) -> Address:
        """The address of default/kubernetes."""
        return self.cidr[1]

    def allocatable(self, address: Address) -> bool:
        """Whether a Service may have this address at all."""
        if address not in self.cidr or address == self.cidr[0]:
            return False
        return not (address.version == 4 and address == self.cidr[-1])

    def choose(self, rng: random.Random) -> Address:
        """
        Choose a free address; the caller marks it used by storing its Service.

        Raises:
            ExhaustedError: the range is full.
        """
        last = self.cidr.num_addresses - (2 if self.cidr.version == 4 else 1)
        for _ in range(_TRIES):
            found = self.cidr[rng.randint(2, min(last, 2**63))] if last > 2 else self.cidr[last]
            if found not in self.used:
                return found
        for offset in range(2, min(last, len(self.used) + 3) + 1):
            if self.cidr[offset] not in self.used:
                return self.cidr[offset]
        message = "range is full"
        raise ExhaustedError(message)


class PortPool:
    """The node ports, each given once (whatever the protocol, which is stricter than real)."""

    def __init__(self) -> None:
        """Everything is free."""
        self.used: set[int] = set()

    def choose(self, rng: random.Random, taken: set[int]) -> int:
        """
        Choose a free port not in `taken` either.

        Raises:
            ExhaustedError: all are used.
        """
        for _ in range(_TRIES):
            found = rng.choice(NODE_PORTS)
            if found not in self.used and found not in taken:
                return found
        for found in NODE_PORTS:
            if found not in self.used and found not in taken:
                return found
        message = "range is full"
        raise ExhaustedError(message)
