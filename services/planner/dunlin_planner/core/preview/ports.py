"""Sets of protocols and ports as the bits of one integer: exact, and cheap to unite and to cut."""

from collections.abc import Iterator
from functools import lru_cache

from dunlin.events.facts import Protocol

Ports = int
"""Bit p of span n: port p of the n-th protocol; the bit behind all spans: every other protocol."""

PROTOCOLS = tuple(Protocol)
SPAN = 1 << 16
NOTHING: Ports = 0
EVERYTHING: Ports = (1 << (len(PROTOCOLS) * SPAN + 1)) - 1
OTHERS: Ports = 1 << (len(PROTOCOLS) * SPAN)
"""ICMP and whatever else has no ports that policies know."""
ICMP = "ICMP and others"


@lru_cache(maxsize=4096)
def span(protocol: Protocol, first: int = 0, last: int = SPAN - 1) -> Ports:
    """Ports `first` … `last` of a protocol."""
    return ((1 << (last - first + 1)) - 1) << (PROTOCOLS.index(protocol) * SPAN + first)


def has(ports: Ports, protocol: str, port: int) -> bool:
    """Whether a packet is in the set; a protocol without ports of its own is one of the others."""
    if protocol not in PROTOCOLS:
        return bool(ports & OTHERS)
    return bool(ports >> (PROTOCOLS.index(Protocol(protocol)) * SPAN + port) & 1)


@lru_cache(maxsize=4096)
def described(ports: Ports) -> tuple[str, ...]:
    """For people: `all`, or `TCP/80`, `UDP/53-60`, `SCTP` (each port), `TCP but 22`, ICMP."""
    if ports == EVERYTHING:
        return ("all",)
    found: list[str] = []
    for protocol in PROTOCOLS:
        found += _of_protocol(protocol, ports)
    return (*found, ICMP) if ports & OTHERS else tuple(found)


def _of_protocol(protocol: Protocol, ports: Ports) -> Iterator[str]:
    mine = ports >> (PROTOCOLS.index(protocol) * SPAN) & ((1 << SPAN) - 1)
    missing = ~mine & ((1 << SPAN) - 1)
    if not missing:
        yield protocol.value
        return
    runs, gaps = list(_runs(mine)), list(_runs(missing))
    if len(gaps) < len(runs):
        yield f"{protocol.value} but {', '.join(map(_run, gaps))}"
        return
    yield from (f"{protocol.value}/{_run(run)}" for run in runs)


def _runs(bits: int) -> Iterator[tuple[int, int]]:
    at = 0
    while bits:
        zeros = (bits & -bits).bit_length() - 1
        bits >>= zeros
        ones = (~bits & (bits + 1)).bit_length() - 1
        yield at + zeros, at + zeros + ones - 1
        bits >>= ones
        at += zeros + ones


def _run(run: tuple[int, int]) -> str:
    first, last = run
    return str(first) if first == last else f"{first}-{last}"
