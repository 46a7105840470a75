"""What this replica has read, and its writes to the ledger: requests and duties share it."""

import asyncio
import time
from collections.abc import Callable, Sequence

import structlog

from dunlin import wire
from dunlin.bus.base import (
    TOMBSTONE,
    Bus,
    BusUnavailable,
    Message,
    WrongLastSequence,
)
from dunlin.service.fact_reader import Chunk, FactReader, Read
from dunlin_ipam.core.events import Deleted, Event, Upserted, Write
from dunlin_ipam.core.step import apply
from dunlin_ipam.state import Rules, State

log = structlog.get_logger(__name__)

REACH_S = 2.0
"""A reader that is further behind cannot vouch for an answer."""


class View:
    """
    The state of one replica and how far it has been read.

    `touched`: nodes to look at again; whoever takes them empties it. Every change is made between
    two awaits, so readers of `state` see it whole.
    """

    def __init__(
        self,
        bus: Bus,
        reader: FactReader,
        rules: Rules,
        on_news: Callable[[], None],
        *,
        now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._bus = bus
        self._rules = rules
        self._on_news = on_news
        self.reader = reader
        self.now_ms = now_ms
        self.state = State(rules)
        self.touched: set[str] = set()
        self.epoch = ""
        self.seq = 0
        self.caught_up = False
        self.ready_since_ms: int | None = None
        self._waiting: dict[asyncio.Future[None], int] = {}

    # --- reading ---------------------------------------------------------------------------------

    @property
    def is_ready(self) -> bool:
        """All of the cluster is known."""
        return self.caught_up and self.state.synced

    def start_over(self) -> None:
        """The fact stream is new: the ledger begins empty, and is filled from what stands."""
        log.warning("the fact stream is new: starting over")
        self.state = State(self._rules)
        self.touched.clear()
        self.caught_up = False
        self.ready_since_ms = None
        self.seq = 0
        for future in self._waiting:
            if not future.done():
                future.set_exception(BusUnavailable("the fact stream is new"))

    def take(self, chunk: Chunk) -> None:
        """Apply what was read."""
        self.touched |= apply(self.state, map(_event, chunk.reads))
        self.epoch, self.seq = chunk.epoch, chunk.seq
        self.caught_up = self.caught_up or chunk.caught_up
        if self.is_ready and self.ready_since_ms is None:
            self.ready_since_ms = self.now_ms()
        for future, seq in self._waiting.items():
            if seq <= self.seq and not future.done():
                future.set_result(None)
        self._on_news()

    async def reach(self, seq: int) -> None:
        """
        Wait until everything up to `seq` has been read.

        Raises:
            BusUnavailable: it takes too long, or the stream is another one now.
        """
        if self.seq >= seq:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = seq
        try:
            async with asyncio.timeout(REACH_S):
                await future
        except TimeoutError:
            raise BusUnavailable(f"facts are read up to {self.seq}, not yet {seq}") from None
        finally:
            del self._waiting[future]

    async def reach_now(self, stream: str) -> None:
        """Wait until everything that the stream holds at this moment has been read."""
        await self.reach(await self._bus.last_seq(stream))

    # --- writing ---------------------------------------------------------------------------------

    async def write(self, writes: Sequence[Write]) -> int:
        """
        Write lines of the ledger by compare-and-set; what was overtaken is read again instead.

        Returns:
            The sequence of the last line that was written, 0 if all were overtaken.
        Raises:
            BusUnavailable: it is not known what was written: what stands will be read.
        """
        messages = [
            Message(
                write.fact.subject,
                TOMBSTONE if write.gone else wire.encode(write.fact),
                expected_seq=write.expected_seq,
            )
            for write in writes
        ]
        last = 0
        unknown: BusUnavailable | None = None
        for write, result in zip(writes, await self._bus.publish_many(messages), strict=True):
            match result:
                case int():
                    last = max(last, result)
                    self._apply(_written(write, result))
                case WrongLastSequence():
                    await self._reread(write)
                case error:
                    unknown = BusUnavailable(str(error))
        if unknown is not None:
            raise unknown
        return last

    async def _reread(self, write: Write) -> None:
        record = await self._bus.get_last(write.fact.subject)
        kind, namespace, name = write.fact.subject.split(".")[3], "", write.fact.name
        if record is None:
            # Purged: the next compare-and-set is against nothing.
            self._apply(Deleted(kind, namespace, name, 0))
            return
        read = await self.reader.read(record)
        if read is None:
            self.state.seqs[write.fact.subject] = record.seq
            return
        self._apply(_event(read))

    def _apply(self, event: Event) -> None:
        self.touched |= apply(self.state, [event])
        self._on_news()


def _written(write: Write, seq: int) -> Event:
    fact = write.fact
    if write.gone:
        return Deleted(fact.subject.split(".")[3], fact.namespace, fact.name, seq)
    return Upserted(fact, seq)


def _event(read: Read) -> Event:
    if read.fact is None:
        return Deleted(read.kind, read.namespace, read.name, read.seq)
    return Upserted(read.fact, read.seq)
