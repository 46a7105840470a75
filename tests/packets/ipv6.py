"""Lines of the table of Services, written in IPv4, as they read in IPv6."""

import re
from collections.abc import Callable

from dunlin import wire
from dunlin.events.facts import AnyFact
from tests.packets.world import Answer, Verdict

_ADDRESSES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"\b10\.244\.(\d+)\.(\d+)\b", lambda m: f"fd00:10:244:{m[1]}::{m[2]}"),
    (r"\b10\.96\.(\d+)\.(\d+)\b", lambda m: f"fd00:10:96::{m[1].strip('0')}{m[2]}"),
    (r"\b192\.0\.2\.(\d+)\b", lambda m: f"2001:db8::{int(m[1]):x}"),
    (r"\b203\.0\.113\.(\d+)\b", lambda m: f"2001:db8:ffff::{int(m[1]):x}"),
    (r"\b198\.51\.100\.(\d+)\b", lambda m: f"2001:db8:f::{int(m[1]):x}"),
)


def text_in_ipv6(text: str) -> str:
    """Every address of the world of tests/packets/world.py, and those of clients and VIPs."""
    text = re.sub(r"(\.\d+)/(\d+)\b", lambda m: f"{m[1]}/{int(m[2]) + 96}", text)
    for pattern, other in _ADDRESSES:
        text = re.sub(pattern, other, text)
    return text


def fact_in_ipv6(fact: AnyFact) -> AnyFact:
    """All its addresses and networks."""
    text = text_in_ipv6(wire.encode(fact).decode())
    assert not re.search(r"\d+\.\d+\.\d+\.\d+", text), text
    found: AnyFact = wire.decode(text.encode(), type(fact))
    return found


def verdict_in_ipv6(verdict: Verdict) -> Verdict:
    """Drops and refusals are the same."""
    if not isinstance(verdict, Answer):
        return verdict
    return Answer(frozenset(map(text_in_ipv6, verdict.endpoints)), verdict.translated)
