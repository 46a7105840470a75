"""Exponential back-off with jitter."""

import asyncio
import random
from collections.abc import Awaitable, Callable


class Backoff:
    """
    Delays that double from `first_s` to `max_s`, each jittered between half and the whole of it.

    `reset` after a success that lasted. `sleep` and `uniform` are replaced in tests.
    """

    def __init__(
        self,
        first_s: float = 0.1,
        max_s: float = 30.0,
        *,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        self.first_s = first_s
        self.max_s = max_s
        self._sleep = sleep
        self._uniform = uniform
        self._next_s = first_s

    def reset(self) -> None:
        """Begin with the shortest delay again."""
        self._next_s = self.first_s

    def next_s(self, at_least_s: float | None = None) -> float:
        """The next delay in seconds; `at_least_s`: what a server asked for (at most an hour)."""
        delay = self._uniform(self._next_s / 2, self._next_s)
        self._next_s = min(self._next_s * 2, self.max_s)
        return max(delay, min(at_least_s or 0.0, 3600.0))

    async def wait(self, at_least_s: float | None = None) -> None:
        """Sleep for the next delay."""
        await self._sleep(self.next_s(at_least_s))
