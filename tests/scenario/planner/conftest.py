"""Scenarios of planner run on both buses."""

from tests.fixtures.worlds import bus, world

__all__ = ["bus", "world"]
