"""What ipam and planner claim, read from the state stream."""

from collections.abc import Callable
from contextlib import aclosing

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Bus, Record
from dunlin.events.state import Progress
from dunlin.watermarks import Epochs, Watermarks

log = structlog.get_logger(__name__)


class ClaimReader:
    """
    The newest claim of every replica.

    `life` grows with every new state stream: a claim that was made before must be made again.
    `on_news` is called for claims of others than `replica`, and for a new stream.
    """

    def __init__(self, bus: Bus, replica: str, on_news: Callable[[], None]) -> None:
        self._bus = bus
        self._replica = replica
        self._on_news = on_news
        self._marks = Watermarks()
        self.life = 0

    async def follow(self) -> None:
        """Read claims, for ever."""
        filters = [subjects.progress_of("ipam"), subjects.progress_of("planner")]
        async with aclosing(self._bus.follow(subjects.STATE_STREAM, filters)) as batches:
            async for batch in batches:
                if batch.reset:
                    self._marks.forget()
                    self.life += 1
                news = [self._take(record) for record in batch.records]
                if batch.reset or any(news):
                    self._on_news()

    def _take(self, record: Record) -> bool:
        """Whether it is somebody else's."""
        _, service, replica = subjects.split(record.subject)
        if record.is_tombstone:
            self._marks.retract(service, replica)
            return True
        try:
            claim = wire.decode(record.data, Progress)
        except (msgspec.DecodeError, ValueError) as error:
            # Bad input, no bug of ours.
            log.error("bad claim", subject=record.subject, reason=str(error))  # noqa: TRY400
            return False
        self._marks.claim(claim)
        return claim.replica != self._replica

    def covers(self, service: str, facts: str, intents: str, fact_seq: int) -> bool:
        """All facts up to `fact_seq` are intents, by the claims of this service's replicas."""
        return self._marks.covering(service, Epochs(facts, intents), fact_seq) is not None
