"""The message bus: `connect` gives the one that the settings name."""

from typing import Protocol

from dunlin.bus.base import Bus, Leases


class BusSettings(Protocol):
    """What `connect` reads; `dunlin.service.settings.CommonSettings` has it."""

    @property
    def nats_url(self) -> str:
        """Comma-separated nats:// or tls:// URLs."""

    @property
    def nats_creds(self) -> str:
        """File of an nkey seed or of user credentials (JWT and seed); "" for none."""

    @property
    def nats_ca(self) -> str:
        """PEM file of the authorities that the server's certificate is checked against."""

    @property
    def nats_cert(self) -> str:
        """PEM file of this client's certificate."""

    @property
    def nats_key(self) -> str:
        """PEM file of this client's key."""

    @property
    def nats_replicas(self) -> int:
        """Copies of each stream in the cluster, 1 … 5."""

    @property
    def nats_make_streams(self) -> bool:
        """False: streams are made by others; wait for them."""

    @property
    def replica(self) -> str:
        """Name of this process, shown by the server."""


async def connect(settings: BusSettings, *, wait_s: float | None = None) -> Bus:
    """
    Connect to NATS; tries again, with back-off, for `wait_s` seconds (None: for ever).

    Raises:
        BusUnavailable: not connected within `wait_s`.
    """
    from dunlin.bus.nats import NatsBus
    from dunlin.bus.nats_client import Options

    return await NatsBus.connect(Options.of(settings), wait_s=wait_s)


def leases(bus: Bus) -> Leases:
    """The leases that live beside the streams of `bus`."""
    from dunlin.bus.memory import MemoryBus, MemoryLeases

    if isinstance(bus, MemoryBus):
        return MemoryLeases(bus.server)
    from dunlin.bus.nats import NatsBus
    from dunlin.bus.nats_leases import NatsLeases

    assert isinstance(bus, NatsBus)
    return NatsLeases(bus)
