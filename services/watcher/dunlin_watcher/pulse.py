"""Something changed: look again."""

import asyncio


class Pulse:
    """Wakes all who wait; a waiter takes the pulse, then checks its level, then waits."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        """Wake all waiters."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    def take(self) -> asyncio.Event:
        """An event that the next beat sets."""
        return self._event
