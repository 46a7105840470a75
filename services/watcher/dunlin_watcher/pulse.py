"""Something changed: look again."""

import asyncio


class Pulse:
    """Wakes everybody who waits; a waiter checks its level itself and takes the pulse before it does."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def beat(self) -> None:
        """Wake all waiters."""
        event, self._event = self._event, asyncio.Event()
        event.set()

    def take(self) -> asyncio.Event:
        """An event that the next beat sets."""
        return self._event
