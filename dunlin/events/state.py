"""Acknowledgements and watermarks: what has been applied, and how far each service has read."""

from typing import Literal

from dunlin import subjects
from dunlin.events.facts import Event


class AppliedError(Event, frozen=True, kw_only=True):
    """An intent that a switch refused. `revision` of the intent; `reason` for people."""

    intent: str
    revision: int
    reason: str


class Applied(Event, frozen=True, kw_only=True):
    """
    What one node's switch holds: all its intents up to `revision`, but `errors`.

    Its intents: of scope "all" or `node`. `epoch`: of the intent stream. `programming_ms`: from
    trigger (or publication) of the newest change to its barrier; `sync_ms`: from its first byte to
    that. `prepared`: the change of policy that it has prepared (ADR 0030), 0: none is, or it is in
    force. `master_since_ms`: when `owner` became the switch's master in this session; `at_ms`: now.
    Both in Unix milliseconds.
    """

    node: str
    dpid: int
    revision: int
    epoch: str
    connected: bool
    flows: int = 0
    groups: int = 0
    pending: int = 0
    errors: tuple[AppliedError, ...] = ()
    programming_ms: float | None = None
    sync_ms: float | None = None
    prepared: int = 0
    owner: str = ""
    master_since_ms: int = 0
    at_ms: int = 0

    @property
    def subject(self) -> str:
        """Where this acknowledgement is published."""
        return subjects.applied(self.node)


class Progress(Event, frozen=True, kw_only=True):
    """
    A watermark: this replica has turned all facts up to `fact_seq` into intents.

    That is `fact_seq` of `fact_epoch`, and as far as its `shards` go; the newest of the intents has
    sequence `intent_seq`. `complete`: it had everything when it computed them (the watcher's
    SyncFact was read), so what it did not publish does not exist. A claim stays true for ever, also
    of a replica long dead: readers take, for each shard, the highest claim of the current epoch.
    """

    service: Literal["ipam", "planner"]
    replica: str
    shards: tuple[int, ...] = (0,)
    shard_count: int = 1
    fact_epoch: str
    fact_seq: int
    intent_epoch: str
    intent_seq: int
    complete: bool = False
    at_ms: int = 0

    @property
    def subject(self) -> str:
        """Where this watermark is published."""
        return subjects.progress(self.service, self.replica)
