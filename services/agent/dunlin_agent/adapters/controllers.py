"""
Which controllers br-int connects to: addresses as given, names as the resolver says now.

A name that has several addresses stands for all of them, so that flowctl may scale by name alone.
A name that cannot be resolved now keeps the addresses that it had: DNS may be away, flowctl is not.
"""

import asyncio
import ipaddress
import logging
import socket
from typing import Final

log = logging.getLogger(__name__)

LOOK_SECONDS: Final = 10.0


def split_target(target: str) -> tuple[str, str, str] | None:
    """(`tcp` or `ssl`, host, port) where the host is a name; None for what OVS takes as it is."""
    kind, _, rest = target.partition(":")
    host, _, port = rest.rpartition(":")
    if kind not in {"tcp", "ssl"} or not host:
        return None
    try:
        ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return kind, host, port
    return None


def target_of(kind: str, address: str, port: str) -> str:
    """As OVS writes it: an IPv6 address in brackets."""
    return f"{kind}:[{address}]:{port}" if ":" in address else f"{kind}:{address}:{port}"


class Controllers:
    """The targets that the settings mean, as last resolved."""

    def __init__(self, targets: tuple[str, ...]) -> None:
        self._targets = targets
        self._known: dict[str, tuple[str, ...]] = {}

    @property
    def has_names(self) -> bool:
        """Something to look at again now and then."""
        return any(split_target(target) for target in self._targets)

    async def resolve(self) -> tuple[str, ...]:
        """Every target, each once, in the order of the settings; addresses of a name sorted."""
        found: dict[str, None] = {}
        for target in self._targets:
            named = split_target(target)
            found |= dict.fromkeys((target,) if named is None else await self._lookup(*named))
        return tuple(found)

    async def changed(self, current: tuple[str, ...]) -> None:
        """Wait until `resolve` would give something else than `current`."""
        if not self.has_names:
            await asyncio.Event().wait()
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if await self.resolve() != current:
                return

    async def _lookup(self, kind: str, host: str, port: str) -> tuple[str, ...]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:
            log.warning("controller %s:%s:%s cannot be resolved: %s", kind, host, port, error)
            return self._known.get(host, ())
        addresses = sorted({str(info[4][0]) for info in found})
        self._known[host] = tuple(target_of(kind, address, port) for address in addresses)
        return self._known[host]
