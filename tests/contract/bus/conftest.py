"""Both buses: memory, and nats-server from the wheel (or the one that NATS_URL names)."""

from tests.fixtures.worlds import bus, world

__all__ = ["bus", "world"]
