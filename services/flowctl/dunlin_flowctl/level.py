"""Waiting for a level, never for an edge; and for one's turn."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

TIMER_S = 0.002
"""More than the resolution of the loop's timers, by which one may be early."""


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


class Slots:
    """At most `size` at a time; who takes longer than `limit_s` keeps nobody else waiting."""

    def __init__(self, size: int, limit_s: float) -> None:
        self._free = asyncio.Semaphore(size)
        self._limit_s = limit_s

    @asynccontextmanager
    async def one(self) -> AsyncIterator[None]:
        """Wait for a slot, in the order of asking, and have it meanwhile."""
        await self._free.acquire()
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._free.release()

        late = asyncio.get_running_loop().call_later(self._limit_s, release)
        try:
            yield
        finally:
            late.cancel()
            release()
