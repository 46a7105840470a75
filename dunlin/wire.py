"""How facts, intents and acknowledgements become bytes: JSON by msgspec, addresses as text."""

import ipaddress
import socket
from collections.abc import Hashable
from functools import cache, lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any, TypeVar, cast

import msgspec

T = TypeVar("T")


def _enc_hook(value: Any) -> Any:
    # As str() says it, in a quarter of the time: addresses are most of what encoding costs.
    if isinstance(value, IPv4Address):
        return socket.inet_ntoa(value.packed)
    if isinstance(value, IPv4Network):
        return f"{socket.inet_ntoa(value.network_address.packed)}/{value.prefixlen}"
    if isinstance(value, (ipaddress._BaseAddress, ipaddress._BaseNetwork)):
        return str(value)
    raise NotImplementedError(f"no wire form for {type(value).__name__}")


def _dec_hook(kind: type, value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError(f"expected an address as text, got {value!r}")  # noqa: TRY004 - msgspec wants it
    if kind is ipaddress._BaseAddress:
        return _address(value)
    if kind is ipaddress._BaseNetwork:
        return ipaddress.ip_network(value)
    raise NotImplementedError(f"no wire form for {kind.__name__}")


@lru_cache(maxsize=1 << 16)
def _address(text: str) -> Any:
    """
    As `ipaddress.ip_address`, which takes four times as long; one object for equal texts.

    inet_pton is as strict; whatever it does not take is left to ipaddress.
    """
    try:
        octets = socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return ipaddress.ip_address(text)
    return IPv4Address(int.from_bytes(octets, "big"))


_ENCODER = msgspec.json.Encoder(enc_hook=_enc_hook, order="deterministic")


@cache
def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(kind, dec_hook=_dec_hook)


def encode(value: Any) -> bytes:
    """JSON bytes; equal values give equal bytes."""
    return _ENCODER.encode(value)


def decode(data: bytes, kind: type[T]) -> T:
    """
    The value of type `kind` in `data`.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: not JSON, or not of that shape; the message
            names the path of the offending field (`$.ips[0]`).
    """
    value: T = read(_decoder(cast("Hashable", kind)), data)
    return value


def read(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T:
    """
    What `decoder` reads, with one kind of error.

    msgspec lets Python's own out for octets of a text that are no UTF-8.

    Raises:
        msgspec.DecodeError, msgspec.ValidationError: as `decode`.
    """
    try:
        return decoder.decode(data)
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"JSON is malformed: a text is not UTF-8: {error}") from error


def to_builtins(value: Any) -> Any:
    """Plain dicts, lists and strings, for REST answers and tables."""
    return msgspec.to_builtins(value, enc_hook=_enc_hook)
