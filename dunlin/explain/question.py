"""What people ask: SRC DST PORT[/PROTOCOL] as words -> a question."""

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Literal

from dunlin.model.addresses import IPAddress

PROTOCOLS = ("TCP", "UDP", "SCTP", "ICMP")


class BadQuestion(ValueError):
    """A word that cannot be understood, or names nothing; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Place:
    """One end: a Pod, a Service, or an address."""

    kind: Literal["pod", "service", "address"]
    namespace: str = ""
    name: str = ""
    ip: IPAddress | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """`port`: a number, or the name of a Service's port; "" for ICMP."""

    source: Place
    destination: Place
    port: str
    protocol: str


def parse(source: str, destination: str, port: str) -> Question:
    """Raises BadQuestion."""
    start, end = parse_place("SRC", source), parse_place("DST", destination)
    if start.kind == "service":
        raise BadQuestion(f"SRC {source!r}: a Service sends nothing: name a Pod or an address")
    number, protocol = parse_port(port)
    if number and not number.isdecimal() and end.kind != "service":
        raise BadQuestion(f"PORT {port!r}: only ports of Services have names here: give a number")
    return Question(start, end, number, protocol)


def parse_place(which: str, text: str) -> Place:
    """`namespace/pod`, `svc/namespace/name` or an address. Raises BadQuestion."""
    try:
        return Place("address", ip=ip_address(text))
    except ValueError:
        pass
    match text.split("/"):
        case ["svc" | "service" | "services", namespace, name] if namespace and name:
            return Place("service", namespace, name)
        case ["po" | "pod" | "pods", namespace, name] if namespace and name:
            return Place("pod", namespace, name)
        case [namespace, name] if namespace and name and namespace not in ("svc", "pod"):
            return Place("pod", namespace, name)
    expected = "namespace/pod, svc/namespace/name or an IP address"
    raise BadQuestion(f"{which} {text!r}: expected {expected}")


def parse_port(text: str) -> tuple[str, str]:
    """(port, protocol) of `80`, `53/UDP`, `http`, `icmp`. Raises BadQuestion."""
    port, slash, protocol = text.partition("/")
    if port.upper() == "ICMP" and not slash:
        return "", "ICMP"
    protocol = protocol.upper() if slash else "TCP"
    if protocol not in PROTOCOLS[:-1]:
        raise BadQuestion(f"PORT {text!r}: protocol {protocol!r} is none of TCP, UDP, SCTP")
    if port.isdecimal() and not 1 <= int(port) <= 65535:
        raise BadQuestion(f"PORT {text!r}: not in 1 … 65535")
    if not port or not all(c.isalnum() or c == "-" for c in port):
        raise BadQuestion(f"PORT {text!r}: expected a number, a port name of a Service, or icmp")
    return port, protocol
