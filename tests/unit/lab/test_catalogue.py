"""Ports for what a lab starts."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from dunlin_lab import catalogue
from dunlin_lab.catalogue import free_port


def test_no_port_that_an_outgoing_connection_may_take() -> None:
    """Neither Linux' own range nor Kubernetes' node ports."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert all(free_port("127.0.0.1") < min(low, 30_000) for _ in range(20))


def test_a_port_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two ports the one where nobody listens."""
    first, second = free_port("127.0.0.1"), free_port("127.0.0.1")
    monkeypatch.setattr(catalogue, "_PORTS", (first, second))
    with socket.create_server(("127.0.0.1", first)):
        assert free_port("127.0.0.1") == second


def test_no_port_is_given_twice() -> None:
    """Several are chosen before any of them is listened on."""
    assert len({free_port("127.0.0.1") for _ in range(500)}) == 500
