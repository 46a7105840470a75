"""Words to questions: what people write, and what is said of wrong words."""

from ipaddress import ip_address

import pytest

from dunlin.explain.question import BadQuestion, Place, parse, parse_place, parse_port


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop/web", Place("pod", "shop", "web")),
        ("pod/shop/web", Place("pod", "shop", "web")),
        ("svc/shop/web", Place("service", "shop", "web")),
        ("10.0.0.1", Place("address", ip=ip_address("10.0.0.1"))),
        ("fd00::1", Place("address", ip=ip_address("fd00::1"))),
    ],
)
def test_places(text: str, expected: Place) -> None:
    """Pods, Services, addresses."""
    assert parse_place("SRC", text) == expected


@pytest.mark.parametrize("text", ["", "web", "a/b/c", "svc/web", "svc//web", "/web", "10.0.0.999"])
def test_wrong_places(text: str) -> None:
    """The word and what it should be."""
    with pytest.raises(BadQuestion, match=r"DST .*expected namespace/pod, svc/namespace/name or"):
        parse_place("DST", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("80", ("80", "TCP")),
        ("53/udp", ("53", "UDP")),
        ("http", ("http", "TCP")),
        ("icmp", ("", "ICMP")),
        ("9/SCTP", ("9", "SCTP")),
    ],
)
def test_ports(text: str, expected: tuple[str, str]) -> None:
    """Numbers, names, protocols."""
    assert parse_port(text) == expected


@pytest.mark.parametrize("text", ["0", "65536", "80/", "80/HTTP", "80/ICMP", "", "a b", "-1/TCP x"])
def test_wrong_ports(text: str) -> None:
    """The word and why."""
    with pytest.raises(BadQuestion, match=r"^PORT "):
        parse_port(text)


def test_what_cannot_be_asked() -> None:
    """A Service sends nothing; Pods' ports have no names here."""
    with pytest.raises(BadQuestion, match="a Service sends nothing"):
        parse("svc/a/b", "c/d", "80")
    with pytest.raises(BadQuestion, match="give a number"):
        parse("a/b", "c/d", "http")
    assert parse("a/b", "svc/c/d", "http").port == "http"
