"""Waiting for a level, never for an edge."""

import asyncio
from collections.abc import Callable


class Signal:
    """`notify` says that something moved; waiters look at their condition again."""

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self._waiters = 0

    def notify(self) -> None:
        """Wake every waiter."""
        if self._waiters:
            self._event.set()
            self._event = asyncio.Event()

    async def wait_for(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Until `condition` holds, at most `timeout_s` seconds; whether it holds."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                while not condition():
                    self._waiters += 1
                    try:
                        await self._event.wait()
                    finally:
                        self._waiters -= 1
        except TimeoutError:
            return condition()
        return True
