"""How far ipam and planner have turned facts into intents, from their Progress claims."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from dunlin.events.state import Progress

SERVICES: tuple[Literal["ipam", "planner"], ...] = ("ipam", "planner")


@dataclass(frozen=True, slots=True)
class Epochs:
    """The lives of the two streams that a claim must speak of."""

    facts: str
    intents: str


class Watermarks:
    """The newest claim of each replica; a claim of another epoch counts for nothing."""

    def __init__(self) -> None:
        self._claims: dict[tuple[str, str], Progress] = {}
        self._complete: dict[Epochs, int | None] = {}

    def forget(self) -> None:
        """The state stream is new."""
        self._claims.clear()
        self._complete.clear()

    def claim(self, progress: Progress) -> None:
        """A replica's newest claim."""
        self._claims[(progress.service, progress.replica)] = progress
        self._complete.clear()

    def retract(self, service: str, replica: str) -> None:
        """The claim was deleted from the stream."""
        self._claims.pop((service, replica), None)
        self._complete.clear()

    def covering(self, service: str, epochs: Epochs, fact_seq: int) -> int | None:
        """All facts up to `fact_seq` are intents up to the returned sequence; None: not yet."""
        return self._every_shard(service, epochs, lambda claim: claim.fact_seq >= fact_seq)

    def complete(self, epochs: Epochs) -> int | None:
        """What no intent up to the returned sequence explains does not exist; None: not known."""
        if epochs not in self._complete:
            self._complete = {epochs: self._all_complete(epochs)}
        return self._complete[epochs]

    def _all_complete(self, epochs: Epochs) -> int | None:
        needed = [
            self._every_shard(service, epochs, lambda claim: claim.complete) for service in SERVICES
        ]
        known = [seq for seq in needed if seq is not None]
        return max(known) if len(known) == len(SERVICES) else None

    def behind(self, epochs: Epochs, fact_seq: int) -> list[str]:
        """Which services have not covered `fact_seq`, in words."""
        return [
            f"{service} has read facts up to {self._read(service, epochs)}, not {fact_seq}"
            for service in SERVICES
            if self.covering(service, epochs, fact_seq) is None
        ]

    def _read(self, service: str, epochs: Epochs) -> int:
        return max((claim.fact_seq for claim in self._of(service, epochs)), default=0)

    def _of(self, service: str, epochs: Epochs) -> Iterable[Progress]:
        for claim in self._claims.values():
            if (
                claim.service == service
                and claim.fact_epoch == epochs.facts
                and claim.intent_epoch == epochs.intents
            ):
                yield claim

    def _every_shard(
        self, service: str, epochs: Epochs, holds: Callable[[Progress], bool]
    ) -> int | None:
        """
        The least sequence by which a claim that `holds` exists for every shard of some division.

        Divisions (shard_count) are not mixed: shards of different divisions overlap.
        """
        divisions: dict[int, dict[int, int]] = {}
        for claim in self._of(service, epochs):
            if not holds(claim):
                continue
            division = divisions.setdefault(claim.shard_count, {})
            for shard in claim.shards:
                division[shard] = min(division.get(shard, claim.intent_seq), claim.intent_seq)
        return min(
            (
                max(division.values())
                for count, division in divisions.items()
                if count > 0 and all(shard in division for shard in range(count))
            ),
            default=None,
        )
