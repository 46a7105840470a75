"""Shared with the agent, which waits for the same claims: see dunlin.watermarks."""

from dunlin.watermarks import SERVICES, Epochs, Watermarks

__all__ = ["SERVICES", "Epochs", "Watermarks"]
