"""`applied.<node>`: what each switch of this replica holds, coalesced."""

import asyncio
import time

import msgspec
import structlog

from dunlin import wire
from dunlin.bus.base import BusError, Message
from dunlin.events.state import Applied
from dunlin_flowctl.handles import Handles

log = structlog.get_logger(__name__)


class Publisher:
    """
    Publishes the newest state of each switch that changed; many changes of one switch, one message.

    `_not_before`: monotonic seconds, by node.
    """

    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._marked: set[str] = set()
        self._wake = asyncio.Event()
        self._published: dict[str, Applied] = {}
        self._not_before: dict[str, float] = {}
        self._sent: dict[str, tuple[bytes, Applied]] = {}
        handles.publisher = self

    def mark(self, node: str) -> None:
        """There is something new to say of this switch."""
        self._marked.add(node)
        self._wake.set()

    def sent(self, node: str, data: bytes) -> Applied | None:
        """What these bytes of an acknowledgement say, if they are the newest of this replica's."""
        sent, applied = self._sent.get(node, (b"", None))
        return applied if sent == data else None

    def forget(self) -> None:
        """The state stream is new: say everything again."""
        self._published.clear()
        self._marked.update(self._handles.runners)
        self._wake.set()

    async def run(self) -> None:
        """For ever."""
        settings = self._handles.settings
        refreshed = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= refreshed + settings.applied_refresh_s:
                refreshed = now
                self._marked.update(self._handles.runners)
            due = {node for node in self._marked if self._not_before.get(node, now) <= now}
            if due:
                await self._flush(due)
                continue
            later = [self._not_before[node] for node in self._marked]
            await self._woken(min([refreshed + settings.applied_refresh_s, *later]) - now)

    async def _woken(self, timeout_s: float) -> None:
        """Until something is marked, at most so long."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _flush(self, due: set[str]) -> None:
        """Only a switch that has just spoken waits: others need not."""
        self._marked -= due
        runners = self._handles.runners
        live = [node for node in due if node in runners]
        again_at = time.monotonic() + self._handles.settings.applied_interval_s
        self._not_before = {
            **{node: at for node, at in self._not_before.items() if node in runners},
            **dict.fromkeys(live, again_at),
        }
        await self._publish([runners[node].applied() for node in live])

    async def goodbye(self, applied: Applied) -> None:
        """The last word of a switch that is not ours any more."""
        await self._publish([applied])
        self._published.pop(applied.node, None)
        self._sent.pop(applied.node, None)

    async def _publish(self, news: list[Applied]) -> None:
        news = [item for item in news if not self._said(item)]
        if not news:
            return
        messages = [Message(item.subject, wire.encode(item)) for item in news]
        self._sent |= {
            item.node: (message.data, item) for item, message in zip(news, messages, strict=True)
        }
        try:
            results = await self._handles.bus.publish_many(messages)
        except BusError as error:
            log.warning("acknowledgements not published", error=str(error))
            results = [error] * len(news)
        for item, result in zip(news, results, strict=True):
            if isinstance(result, BusError):
                self._marked.add(item.node)
                self._not_before[item.node] = (
                    time.monotonic() + self._handles.settings.applied_refresh_s
                )
                log.warning("not published", node=item.node, error=str(result))
            else:
                self._published[item.node] = item

    def _said(self, item: Applied) -> bool:
        """Nothing but the time differs from what was published last."""
        before = self._published.get(item.node)
        return before is not None and msgspec.structs.replace(before, at_ms=item.at_ms) == item
