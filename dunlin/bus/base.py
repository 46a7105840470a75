"""
What Dunlin needs of a message bus; `memory.py` and `nats.py` are held to one contract suite.

Streams are logs of messages, each on a subject; the newest message of a subject is its state. A
tombstone (empty payload) says that the object is gone. Sequences grow within one epoch of a
stream; deleting the stream and making it anew starts another epoch.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from dunlin import subjects

TOMBSTONE = b""

BATCH_MAX = 4096
"""Records of one `Batch` at most."""

HISTORY_PER_SUBJECT = {
    subjects.FACTS_STREAM: 16,
    subjects.INTENTS_STREAM: 16,
    subjects.STATE_STREAM: 1,
    subjects.OWNERS_STREAM: 1,
}
"""Messages that a stream keeps of each subject: the newest is the state, the rest is history."""


class BusError(Exception):
    """The bus could not do it; the message names the subject or stream."""


class BusUnavailable(BusError):
    """No server, or it did not answer in time: the same call may succeed later."""


class WrongLastSequence(BusError):
    """Compare-and-set lost: somebody else wrote this subject. `actual` where the server says it."""

    def __init__(self, subject: str, expected: int, actual: int | None = None) -> None:
        super().__init__(f"{subject}: expected last sequence {expected}, is {actual}")
        self.subject = subject
        self.expected = expected
        self.actual = actual


class NoResponder(BusError):
    """Nobody serves that request subject."""


@dataclass(frozen=True, slots=True)
class Message:
    """
    Something to publish.

    `data`: `TOMBSTONE` deletes. `msg_id`: published once within the stream's duplicate window.
    `expected_seq`: the last sequence on this very subject must be this (0: there is none). Both
    together may be sent again when it is not known whether the first try was stored: while that is
    the newest message of its subject, the answer is its sequence, not `WrongLastSequence`.
    """

    subject: str
    data: bytes
    msg_id: str | None = None
    expected_seq: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Record:
    """Something read from a stream. `time_ms`: Unix milliseconds when the server stored it."""

    subject: str
    data: bytes
    seq: int
    time_ms: int

    @property
    def is_tombstone(self) -> bool:
        """The object on this subject is gone."""
        return not self.data


@dataclass(frozen=True, slots=True)
class Batch:
    """
    Records in the order of their sequence.

    `caught_up`: at the time of the batch nothing newer matched; the first such batch ends the
    initial state (it may be empty). `seq`: the stream is read up to here (>= the last record's:
    also covers records that the filters leave out, so a batch may come without records). `reset`:
    forget everything, the stream is new (`epoch` differs from before, or this reader was away too
    long); its state begins with the records of this very batch.
    """

    records: tuple[Record, ...]
    epoch: str
    seq: int
    caught_up: bool = False
    reset: bool = False


class Subscription(Protocol):
    """Something to stop."""

    async def stop(self) -> None:
        """End it; idempotent."""


Handler = Callable[[str, bytes], Awaitable[bytes]]
"""
Serves one request: (subject, data) -> reply.

An exception is logged, counted and answered as Failure.
"""


class Bus(Protocol):
    """One connection. Every method raises `BusUnavailable` rather than wait beyond its time-out."""

    async def ensure_streams(self) -> None:
        """
        Make the streams and the lease bucket of `dunlin.subjects` if missing; idempotent.

        From then on this bus also makes a stream again when it finds it gone.
        """

    async def epoch(self, stream: str) -> str:
        """Names this life of the stream."""

    async def last_seq(self, stream: str) -> int:
        """Sequence of the newest message of the stream, 0 if there is none."""

    async def publish(self, message: Message) -> int:
        """
        Store one message; returns its sequence (of the first copy, for a duplicate `msg_id`).

        Raises:
            WrongLastSequence: `expected_seq` is given and not the last of the subject.
        """

    async def publish_many(self, messages: Sequence[Message]) -> list[int | BusError]:
        """
        Pipelined; one result a message, in order.

        Stored in order; a failure does not stop the rest.
        """

    async def get_last(self, subject: str) -> Record | None:
        """The newest message of one subject, tombstone included."""

    def follow(
        self, stream: str, filters: Sequence[str] = (), *, history: bool = False
    ) -> AsyncGenerator[Batch, None]:
        """
        The state now (newest record of each subject, tombstones too), then every change, for ever.

        Survives reconnects without a gap or a repetition (changes that newer ones have pushed
        out of their subject's bounded history are left out); a deleted stream gives a `reset`
        batch once it exists again. `history`: every stored message instead of the newest of each
        subject. Batches coalesce what waits (at most BATCH_MAX records), so a slow reader takes
        bigger steps.

        Leave it by `aclosing` where you do not read for ever. Raises `BusUnavailable` only when the
        bus is closed, ValueError when two filters overlap and neither covers the other.
        """

    async def purge(self, stream: str, subject: str, *, up_to_seq: int | None = None) -> None:
        """
        Forget a subject altogether, history and tombstone; readers are not told.

        `up_to_seq`: only what is not newer than this, so that a message published meanwhile stays.
        """

    async def request(self, subject: str, data: bytes, *, timeout_s: float) -> bytes:
        """
        One request, one reply.

        Raises:
            NoResponder: nobody serves `subject`.
            BusUnavailable: no reply in time.
        """

    async def serve(self, subject: str, handler: Handler, *, queue: str = "") -> Subscription:
        """Answer requests on `subject`; with `queue` one member of that queue group gets each."""

    @property
    def connected(self) -> bool:
        """There is a live connection now."""

    async def close(self) -> None:
        """Flush and disconnect; idempotent."""


@dataclass(frozen=True, slots=True)
class Lease:
    """
    The right to do something, until `expires_at` (monotonic clock of this process, seconds).

    `fencing`: grows with every change of holder; what the lease protects refuses smaller ones.
    """

    name: str
    holder: str
    fencing: int
    expires_at: float


class Leases(Protocol):
    """
    Leases in a key-value bucket with compare-and-set.

    A holder that cannot renew must stop what the lease protects before `expires_at`.
    """

    async def acquire(self, name: str, holder: str, *, ttl_s: float) -> Lease | None:
        """The lease, if it is free, expired or already ours; None if somebody else's."""

    async def renew(self, lease: Lease, *, ttl_s: float) -> Lease | None:
        """The lease with a later end; None if it has been lost."""

    async def release(self, lease: Lease) -> None:
        """Give it back at once; nothing if it is not ours any more."""

    async def holders(self, prefix: str) -> dict[str, str]:
        """Live leases: name -> holder."""
