"""flowctl's own session with a bridge, over the bridge's management socket."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from prometheus_client import CollectorRegistry

from dunlin_flowctl.adapters.listener import STREAM_LIMIT
from dunlin_flowctl.adapters.session import Session
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.metrics import FlowctlMetrics


class TimedSession(Session):
    """A session that knows how long it has been writing. `written_s`: seconds, of all writes."""

    written_s = 0.0

    async def write(self, *parts: bytes) -> None:
        """As `Session.write`."""
        started = time.perf_counter()
        await super().write(*parts)
        self.written_s += time.perf_counter() - started


@asynccontextmanager
async def session_with(path: Path) -> AsyncIterator[TimedSession]:
    """A session that is master, as flowctl's are."""
    pair = await asyncio.open_unix_connection(str(path), limit=STREAM_LIMIT)
    session = TimedSession(*pair, "bench", FlowctlSettings(), FlowctlMetrics(CollectorRegistry()))
    await session.handshake()
    reading = asyncio.create_task(session.run())
    try:
        await session.set_role("master", 1)
        yield session
    finally:
        session.close("done")
        await reading
