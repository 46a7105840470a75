"""ipam's scenarios run on both buses."""

from tests.scenario.worlds import world

__all__ = ["world"]
