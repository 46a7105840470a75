"""Something changed: look again."""

import asyncio
from collections.abc import Callable


class Pulse:
    """Wakes all who wait for a level: a waiter takes the pulse, then looks, then waits."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        """Wake all."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    def take(self) -> asyncio.Event:
        """An event that the next beat sets; to be taken before looking at the level."""
        return self._event

    async def until(self, level: Callable[[], bool]) -> None:
        """Wait until `level` holds."""
        while True:
            event = self.take()
            if level():
                return
            await event.wait()
