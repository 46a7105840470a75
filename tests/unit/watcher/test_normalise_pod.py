"""Pods -> facts: bandwidth annotations and hostPorts."""

from ipaddress import ip_address

import pytest

from dunlin.events.facts import PodFact
from tests.scenario.watcher.objects import pod
from tests.unit.watcher.test_normalise import changed, read


@pytest.mark.parametrize(
    ("text", "bps"),
    [
        ("10M", 10_000_000),
        ("1k", 1_000),
        ("1P", 10**15),
        ("1.5Gi", 1_610_612_736),
        ("2e6", 2_000_000),
        ("1E-3P", None),
        ("20000000", 20_000_000),
        ("2000000m", 2_000),
        ("999", None),
        ("1.1P", None),
        ("-10M", None),
        ("10 M", None),
        ("10Mbit", None),
        ("", None),
        ("1" * 31, None),
        (None, 0),
    ],
)
def test_bandwidth(text: str | None, bps: int | None) -> None:
    """A quantity from 1k to 1P; what is none is named, and no limit."""
    for way in ("ingress", "egress"):
        key = f"kubernetes.io/{way}-bandwidth"
        found = read("pod", changed(pod("x"), "metadata.annotations", {key: text}))
        assert found.unsupported == ()
        assert isinstance(found.fact, PodFact)
        assert getattr(found.fact, f"{way}_bps") == (bps or 0)
        expected = [] if bps is not None else [f'metadata.annotations["{key}"]']
        assert [problem.field for problem in found.problems] == expected


HOST_PORT = changed(pod("x"), "spec.containers.0.ports.0.hostPort", 8080)
HOST_PORT = changed(HOST_PORT, "metadata.creationTimestamp", "2026-01-02T03:04:05Z")


@pytest.mark.parametrize(
    ("host_ip", "expected"),
    [
        (None, None),
        ("", None),
        ("0.0.0.0", ip_address("0.0.0.0")),
        ("192.0.2.1", ip_address("192.0.2.1")),
        ("::", ip_address("::")),
    ],
)
def test_host_port(host_ip: str | None, expected: object) -> None:
    """With its address, and when the Pod was made: the older of two has the port."""
    found = read("pod", changed(HOST_PORT, "spec.containers.0.ports.0.hostIP", host_ip))
    assert (found.unsupported, found.problems) == ((), ())
    assert isinstance(found.fact, PodFact)
    (port,) = found.fact.ports
    assert (port.host_port, port.host_ip) == (8080, expected)
    assert found.fact.created_ms == 1767323045000
    without = read("pod", changed(pod("x"), "metadata.creationTimestamp", "2026-01-02T03:04:05Z"))
    assert isinstance(without.fact, PodFact)
    assert without.fact.created_ms == 0, "nobody needs it"


def test_host_port_at_no_address_is_served_nowhere() -> None:
    """An address that makes no sense must not become all addresses; the container port stays."""
    found = read("pod", changed(HOST_PORT, "spec.containers.0.ports.0.hostIP", "eth0"))
    assert [str(p) for p in found.problems] == [
        'spec.containers[0].ports[0].hostIP: not an IP address: "eth0"'
    ]
    assert isinstance(found.fact, PodFact)
    (port,) = found.fact.ports
    assert (port.host_port, port.host_ip) == (0, None)
    assert port.port


def test_ports_on_host_network_are_the_nodes_own() -> None:
    """The API server gives every port there a hostPort: nobody asked for anything."""
    found = read("pod", changed(HOST_PORT, "spec.hostNetwork", True))
    assert isinstance(found.fact, PodFact)
    assert [port.host_port for port in found.fact.ports] == [0]
    sctp = changed(HOST_PORT, "spec.containers.0.ports.0.protocol", "SCTP")
    assert read("pod", sctp).unsupported
    assert not read("pod", changed(sctp, "spec.hostNetwork", True)).unsupported


def test_host_ports_of_init_containers() -> None:
    """Those that run as long as the Pod have them; those that end before it have not."""
    for policy, expected in (("Always", [8080, 9090]), (None, [8080])):
        ports = [{"containerPort": 90, "hostPort": 9090}]
        init = [{"name": "i", "restartPolicy": policy, "ports": ports}]
        found = read("pod", changed(HOST_PORT, "spec.initContainers", init)).fact
        assert isinstance(found, PodFact)
        assert [port.host_port for port in found.ports] == expected
