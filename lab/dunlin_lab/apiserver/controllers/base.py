"""The loop every controller runs in: changes make keys, each key is synchronised once."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.errors import ApiError

if TYPE_CHECKING:
    from collections.abc import Callable

    from dunlin_lab.apiserver.registry import Registry
    from dunlin_lab.apiserver.resources import Resource
    from dunlin_lab.apiserver.store import Change

_log = logging.getLogger(__name__)

_TURN = 32
"""Keys synchronised before other tasks get a turn."""

_RETRY_SECONDS = (0.05, 5.0)


class Controller:
    """
    A queue of keys, without doubles, and a task that empties it.

    `sync` runs within one step of the event loop, so what it reads cannot change under it.
    """

    name = ""

    def __init__(self, registry: Registry) -> None:
        """Watch nothing yet."""
        self.registry = registry
        self.store = registry.store
        self._queue: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._failures: dict[str, int] = {}
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def sync(self, key: str) -> None:
        """Bring what belongs to a key to where it shall be."""
        raise NotImplementedError

    def enqueue(self, key: str) -> None:
        """Have a key synchronised soon."""
        self._queue[key] = None
        self._wake.set()

    def enqueue_after(self, key: str, seconds: float) -> None:
        """Have a key synchronised after a while; a later call replaces an earlier one."""
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
        loop = asyncio.get_running_loop()
        self._timers[key] = loop.call_later(seconds, self.enqueue, key)

    def watch(self, resource: Resource, on_change: Callable[[Change], None]) -> None:
        """Hear of every change of a kind."""
        self.store.subscribe(resource, on_change)

    async def run(self) -> None:
        """Synchronise keys for ever."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            count = 0
            while self._queue:
                if count % _TURN == 0:
                    await asyncio.sleep(0)
                count += 1
                key = next(iter(self._queue))
                del self._queue[key]
                self._sync_or_retry(key)

    def _sync_or_retry(self, key: str) -> None:
        try:
            self.sync(key)
        except ApiError as error:
            self._retry(key, str(error))
        except Exception:  # noqa: BLE001  (one key may not stop the others; it is logged)
            _log.exception("%s controller failed on %s", self.name, key)
            self._retry(key, "internal error")
        else:
            self._failures.pop(key, None)

    def _retry(self, key: str, why: str) -> None:
        count = self._failures[key] = self._failures.get(key, 0) + 1
        first, last = _RETRY_SECONDS
        delay = min(first * 2**count, last)
        _log.warning("%s controller: %s: %s; again in %.2f s", self.name, key, why, delay)
        self.enqueue_after(key, delay)


def split_key(key: str) -> tuple[str, str]:
    """Split a store key into namespace (empty for cluster scope) and name."""
    namespace, _, name = key.rpartition("/")
    return namespace, name
