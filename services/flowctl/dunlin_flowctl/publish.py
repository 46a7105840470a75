"""`applied.<node>`: what each switch of this replica holds, coalesced."""

import asyncio
import time

import msgspec
import structlog

from dunlin import wire
from dunlin.bus.base import BusError, Message
from dunlin.events.state import Applied
from dunlin_flowctl.state import State

log = structlog.get_logger(__name__)


class Publisher:
    """Publishes the newest state of each switch that changed; many changes, one message."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._marked: set[str] = set()
        self._wake = asyncio.Event()
        self._published: dict[str, Applied] = {}
        state.publisher = self

    def mark(self, node: str) -> None:
        """There is something new to say of this switch."""
        self._marked.add(node)
        self._wake.set()

    def forget(self) -> None:
        """The state stream is new: say everything again."""
        self._published.clear()
        self._marked.update(self._state.runners)
        self._wake.set()

    async def run(self) -> None:
        """For ever."""
        settings = self._state.settings
        refreshed = time.monotonic()
        while True:
            wait_s = max(0.0, refreshed + settings.applied_refresh_s - time.monotonic())
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                refreshed = time.monotonic()
                self._marked.update(self._state.runners)
            self._wake.clear()
            await self._flush()
            await asyncio.sleep(settings.applied_interval_s)

    async def _flush(self) -> None:
        marked, self._marked = self._marked, set()
        runners = self._state.runners
        await self._publish([runners[node].applied() for node in marked if node in runners])

    async def goodbye(self, applied: Applied) -> None:
        """The last word of a switch that is not ours any more."""
        await self._publish([applied])
        self._published.pop(applied.node, None)

    async def _publish(self, news: list[Applied]) -> None:
        news = [item for item in news if not self._said(item)]
        if not news:
            return
        messages = [Message(item.subject, wire.encode(item)) for item in news]
        try:
            results = await self._state.bus.publish_many(messages)
        except BusError as error:
            log.warning("acknowledgements not published", error=str(error))
            results = [error] * len(news)
        for item, result in zip(news, results, strict=True):
            if isinstance(result, BusError):
                self._marked.add(item.node)
                log.warning("not published", node=item.node, error=str(result))
            else:
                self._published[item.node] = item

    def _said(self, item: Applied) -> bool:
        """Nothing but the time differs from what was published last."""
        before = self._published.get(item.node)
        return before is not None and msgspec.structs.replace(before, at_ms=item.at_ms) == item
