"""The last changes of what every switch holds: what one still lacks that holds an older state."""

from collections import deque

from dunlin_flowctl.core.digest import Totals
from dunlin_flowctl.core.layer import Changes
from dunlin_flowctl.core.switch import Change, Moment, Then

CHANGES_MAX = 4096
"""At 50 changes of Services and policies a second 80 seconds: a takeover takes five."""
CONTENT_MAX = 200_000
"""Flows and groups that nobody else remembers any more."""


class Recent:
    """The newest changes, at most `changes_max` of them and `content_max` old flows and groups."""

    def __init__(self, changes_max: int = CHANGES_MAX, content_max: int = CONTENT_MAX) -> None:
        self._changes_max = changes_max
        self._content_max = content_max
        self._changes: deque[Change] = deque()
        self._content = 0

    def __len__(self) -> int:
        return len(self._changes)

    def note(self, before: Totals, changes: Changes, moment: Moment) -> None:
        """One more; the oldest go."""
        change = Change(before, changes, moment)
        self._changes.append(change)
        self._content += _content(change)
        while len(self._changes) > self._changes_max or self._content > self._content_max:
            self._content -= _content(self._changes.popleft())

    def then(self, digest: int, now: Totals) -> Then | None:
        """The newest state of this digest; None: not known any more. `now`: what stands today."""
        if digest == now.digest:
            return Then(now, [])
        later: list[Change] = []
        for change in reversed(self._changes):
            later.append(change)
            if change.before.digest == digest:
                return Then(change.before, later[::-1])
        return None


def _content(change: Change) -> int:
    return sum(
        part.old.totals.flows + part.old.totals.groups
        for part in change.changes.values()
        if part.old is not None
    )
