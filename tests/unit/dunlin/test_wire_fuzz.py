"""Whatever comes over the bus is either a fact, intent or claim, or an error that says so."""

import typing
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin import wire
from dunlin.bus.nats_client import server_urls
from dunlin.events.facts import AnyFact
from dunlin.events.intents import AnyIntent, ServiceEndpoint
from dunlin.events.state import Applied, Progress

KINDS = [*typing.get_args(AnyFact), *typing.get_args(AnyIntent), Applied, Progress]
FIELDS = sorted({field.encode_name for kind in KINDS for field in msgspec.structs.fields(kind)})
LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
LEAVES |= st.sampled_from(["10.0.0.1", "10.0.0.0/8", "fd00::1", "0e:00:64:75:6e:01", "TCP", "node"])
NAMES = st.sampled_from([*FIELDS, "kind"])
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=6),
    max_leaves=20,
)


def taken(data: bytes, kind: typing.Any) -> object:
    """The value, or None where it is refused in the way that readers expect."""
    try:
        return wire.decode(data, kind)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None


@pytest.mark.parametrize("kind", [AnyFact, AnyIntent, Applied, Progress])
@given(data=st.binary(max_size=300))
def test_octets_are_refused_cleanly(kind: typing.Any, data: bytes) -> None:
    """No other exception, for any octets."""
    taken(data, kind)


@pytest.mark.parametrize("kind", [AnyFact, AnyIntent, Applied, Progress])
@given(value=JSON)
def test_what_is_taken_reads_back(kind: typing.Any, value: object) -> None:
    """Well-formed JSON of wrong shape is refused; what is taken is the same after a round trip."""
    found = taken(msgspec.json.encode(value), kind)
    if found is not None:
        assert wire.decode(wire.encode(found), kind) == found


ADDRESSES = st.ip_addresses().map(str) | st.text("0123456789.:abcdefx% \0", max_size=20)


@given(
    text=ADDRESSES
    | st.sampled_from(["10.0.0.01", "1.2.3", "1.2.3.4 ", "0x1.2.3.4", "\uff11.2.3.4"])
)
def test_addresses_are_read_as_by_ipaddress(text: str) -> None:
    """The same address, or refused as well."""
    try:
        expected: object = ip_address(text)
    except ValueError:
        expected = None
    found = taken(msgspec.json.encode({"ip": text, "port": 1}), ServiceEndpoint)
    assert getattr(found, "ip", None) == expected


@given(st.ip_addresses(), st.integers(0, 32))
def test_addresses_are_written_as_by_ipaddress(ip: IPv4Address | IPv6Address, bits: int) -> None:
    """Addresses and networks of both families, as `str` says them."""
    network = ip_network((ip, ip.max_prefixlen - bits), strict=False)
    assert msgspec.json.decode(wire.encode([ip, network])) == [str(ip), str(network)]


def test_servers_share_the_user_of_the_first() -> None:
    """`tls://user:password@a,b`: b is reached in the same way; a full URL stays what it is."""
    assert server_urls("tls://w:p@a:1,b:2, nats://c:3") == (
        "tls://w:p@a:1",
        "tls://w:p@b:2",
        "nats://c:3",
    )
    assert server_urls("nats://[::1]:4222") == ("nats://[::1]:4222",)
    assert server_urls("") == ()
