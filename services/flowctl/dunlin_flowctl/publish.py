"""`applied.<node>`: what each switch of this replica holds, coalesced."""

import asyncio
import heapq
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

    `_due`: nodes to speak of now. `_resting`: who has just spoken, and until when it is silent
    (monotonic seconds). `_again`: those of them that have something new to say. `_ends`: of
    `_resting`, a heap. So a turn costs what those cost that speak, not what all switches do.
    """

    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._due: set[str] = set()
        self._again: set[str] = set()
        self._resting: dict[str, float] = {}
        self._ends: list[tuple[float, str]] = []
        self._wake = asyncio.Event()
        self._published: dict[str, Applied] = {}
        self._sent: dict[str, tuple[bytes, Applied]] = {}
        handles.publisher = self

    def mark(self, node: str) -> None:
        """There is something new to say of this switch."""
        if node in self._resting:
            if not self._again:
                # The end of its rest is waited for from now on.
                self._wake.set()
            self._again.add(node)
        else:
            self._due.add(node)
            self._wake.set()

    def sent(self, node: str, data: bytes) -> Applied | None:
        """What these bytes of an acknowledgement say, if they are the newest of this replica's."""
        sent, applied = self._sent.get(node, (b"", None))
        return applied if sent == data else None

    def contradicted(self, node: str) -> None:
        """
        Somebody else has spoken of this switch: if it is ours, our word shall be the last one.

        Its owner before us may have spoken after us, when it did not know of us yet.
        """
        if node in self._handles.runners:
            self._published.pop(node, None)
            self.mark(node)

    def forget(self) -> None:
        """The state stream is new: say everything again."""
        self._published.clear()
        self._mark_all()

    def _mark_all(self) -> None:
        for node in self._handles.runners:
            self.mark(node)

    async def run(self) -> None:
        """For ever."""
        refresh_s = self._handles.settings.applied_refresh_s
        refreshed = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= refreshed + refresh_s:
                refreshed = now
                self._mark_all()
            self._rested(now)
            if self._due:
                await self._flush()
                continue
            refresh_at = refreshed + refresh_s
            next_at = min(refresh_at, self._ends[0][0]) if self._again else refresh_at
            await self._woken(next_at - now)

    async def _woken(self, timeout_s: float) -> None:
        """Until something is marked, at most so long."""
        try:
            async with asyncio.timeout(max(0.0, timeout_s)):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _rest(self, node: str, until: float) -> None:
        """Only a switch that has just spoken waits: others need not."""
        self._resting[node] = until
        heapq.heappush(self._ends, (until, node))

    def _rested(self, now: float) -> None:
        """Who has waited long enough may speak again."""
        while self._ends and self._ends[0][0] <= now:
            end, node = heapq.heappop(self._ends)
            if self._resting.get(node) != end:
                continue
            del self._resting[node]
            if node in self._again:
                self._again.discard(node)
                self._due.add(node)

    async def _flush(self) -> None:
        runners = self._handles.runners
        due, self._due = self._due, set()
        live = [node for node in due if node in runners and runners[node].owns]
        again_at = time.monotonic() + self._handles.settings.applied_interval_s
        for node in live:
            self._rest(node, again_at)
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
        later = time.monotonic() + self._handles.settings.applied_refresh_s
        for item, result in zip(news, results, strict=True):
            if isinstance(result, BusError):
                self._rest(item.node, later)
                self._again.add(item.node)
                log.warning("not published", node=item.node, error=str(result))
            else:
                self._published[item.node] = item

    def _said(self, item: Applied) -> bool:
        """Nothing but the time differs from what was published last."""
        before = self._published.get(item.node)
        return before is not None and msgspec.structs.replace(before, at_ms=item.at_ms) == item
