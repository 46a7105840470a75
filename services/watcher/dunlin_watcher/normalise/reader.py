"""Judging single values: good ones come back typed, bad ones are reported by field and left out."""

import ipaddress
import json
import re
from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec

from dunlin.events.facts import Protocol
from dunlin.model.addresses import IPAddress, IPNetwork

BANDWIDTH_MIN, BANDWIDTH_MAX = 10**3, 10**15
_QUANTITY = re.compile(
    r"(?P<number>[+-]?(?:[0-9]{1,30}(?:\.[0-9]{0,30})?|\.[0-9]{1,30}))"
    r"(?P<suffix>[KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]{1,2})?",
    re.ASCII,
)
_POWERS = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
ANNOTATION_PREFIX = "dunlin.dev/"
LOG_DENIED = f"{ANNOTATION_PREFIX}log-denied"


class Problem(msgspec.Struct, frozen=True):
    """
    Something in an object that cannot be used.

    `field` as Kubernetes writes it (`spec.ports[0].protocol`), `reason` for people, `word`: the
    same in one fixed word, for metrics.
    """

    field: str
    reason: str
    word: str

    def __str__(self) -> str:
        """`spec.ports[0].protocol: unknown protocol "FOO"`."""
        return f"{self.field}: {self.reason}"


def quoted(value: Any) -> str:
    """A value from outside as JSON, cut to a length that logs can bear."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 80 else text[:77] + "..."


class Reader:
    """Collects what is wrong with one object; a bad value gives None, or the default."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def bad(self, field: str, word: str, reason: str) -> None:
        """Report a value that is left out."""
        self.problems.append(Problem(field, reason, word))

    def text(self, field: str, value: Any, default: str = "") -> str:
        """A string; null is `default`."""
        if value is None:
            return default
        if isinstance(value, str):
            return value
        self.bad(field, "type", f"expected text, got {quoted(value)}")
        return default

    def flag(self, field: str, value: Any, *, default: bool = False) -> bool:
        """A boolean; null is `default`."""
        if value is None:
            return default
        if isinstance(value, bool):
            return value
        self.bad(field, "type", f"expected true or false, got {quoted(value)}")
        return default

    def number(self, field: str, value: Any, low: int, high: int, default: int = 0) -> int:
        """A whole number within bounds; null is `default`."""
        if value is None:
            return default
        if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
            return value
        self.bad(field, "number", f"expected a whole number {low}-{high}, got {quoted(value)}")
        return default

    def port(self, field: str, value: Any) -> int | None:
        """A port number, 1-65535; null is bad."""
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 65535:
            return value
        self.bad(field, "port", f"expected a port number 1-65535, got {quoted(value)}")
        return None

    def protocol(self, field: str, value: Any) -> Protocol | None:
        """TCP, UDP or SCTP; null is TCP."""
        if value is None:
            return Protocol.TCP
        try:
            return Protocol(value)
        except ValueError:
            self.bad(field, "protocol", f"unknown protocol {quoted(value)}")
            return None

    def ip(self, field: str, value: Any, version: int | None = None) -> IPAddress | None:
        """An address (of that IP version, where given), without a zone index."""
        try:
            if not isinstance(value, str) or "%" in value:
                raise ValueError("not the text of an address")  # noqa: TRY301 - said once, below
            address = ipaddress.ip_address(value)
        except ValueError:
            self.bad(field, "address", f"not an IP address: {quoted(value)}")
            return None
        if version not in (None, address.version):
            self.bad(field, "address", f"not an IPv{version} address: {quoted(value)}")
            return None
        return address

    def ips(self, field: str, values: Iterable[Any] | None) -> tuple[IPAddress, ...]:
        """The good ones of a list of addresses, in its order."""
        found = (self.ip(f"{field}[{i}]", value) for i, value in enumerate(values or ()))
        return tuple(address for address in found if address is not None)

    def network(self, field: str, value: Any) -> IPNetwork | None:
        """A CIDR; bits beyond the prefix are masked, as Kubernetes does."""
        try:
            if not isinstance(value, str) or "/" not in value:
                raise ValueError("not the text of a CIDR")  # noqa: TRY301 - said once, below
            return ipaddress.ip_network(value.strip(), strict=False)
        except ValueError:
            self.bad(field, "cidr", f"not a CIDR: {quoted(value)}")
            return None

    def networks(self, field: str, values: Iterable[Any] | None) -> tuple[IPNetwork, ...]:
        """The good ones of a list of CIDRs, in its order."""
        found = (self.network(f"{field}[{i}]", value) for i, value in enumerate(values or ()))
        return tuple(network for network in found if network is not None)

    def text_map(self, field: str, value: Any, prefix: str = "") -> dict[str, str]:
        """Labels or annotations whose key begins with `prefix`; those that are not text are bad."""
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.bad(field, "type", f"expected an object, got {quoted(value)}")
            return {}
        found = {}
        for key, item in value.items():
            if not key.startswith(prefix):
                continue
            if isinstance(item, str):
                found[key] = item
            else:
                self.bad(f"{field}[{quoted(key)}]", "type", f"expected text, got {quoted(item)}")
        return found

    def switched(self, annotations: Any, key: str) -> bool:
        """An annotation that says "true" or "false"; none is false, another value is bad."""
        value = item(annotations, key)
        if value in (None, "true", "false"):
            return bool(value == "true")
        field = f"metadata.annotations[{quoted(key)}]"
        self.bad(field, "value", f'expected "true" or "false", got {quoted(value)}')
        return False

    def bandwidth(self, annotations: Any, key: str) -> int:
        """
        Bits a second of an annotation that holds a quantity, 0 where there is none.

        Kubernetes takes 1k to 1P; anything else is bad, and no limit.
        """
        value = item(annotations, key)
        if value is None:
            return 0
        bps = quantity(value)
        if bps is not None and BANDWIDTH_MIN <= bps <= BANDWIDTH_MAX:
            return int(bps)
        field = f"metadata.annotations[{quoted(key)}]"
        self.bad(field, "quantity", f"expected a quantity from 1k to 1P, got {quoted(value)}")
        return 0

    def time_ms(self, field: str, value: Any) -> int | None:
        """An RFC 3339 time as Unix milliseconds; null stays None."""
        if value is None:
            return None
        try:
            moment = datetime.fromisoformat(value)
            if moment.tzinfo is None:
                raise ValueError("no time zone")  # noqa: TRY301 - said once, below
            return int(moment.timestamp() * 1000)
        except (TypeError, ValueError, OverflowError):
            self.bad(field, "time", f"not an RFC 3339 time: {quoted(value)}")
            return None


def quantity(value: Any) -> Decimal | None:
    """A `resource.Quantity` (apimachinery): 10M, 1.5Gi, 1e6, 500k; None: it is none."""
    found = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        return None
    number, suffix = Decimal(found["number"]), found["suffix"] or ""
    if suffix.endswith("i"):
        return number * Decimal(1024) ** ("KMGTPE".index(suffix[0]) + 1)
    if suffix[:1] in ("e", "E") and len(suffix) > 1:
        return number.scaleb(int(suffix[1:]))
    return number.scaleb(_POWERS[suffix])


def item(value: Any, key: str) -> Any:
    """One label or annotation of a leaf that may be anything."""
    return value.get(key) if isinstance(value, dict) else None
