"""When changes of endpoints are in force on this node's switch, in kube-proxy's words: pure."""

from collections import deque

PENDING_MAX = 10_000
"""Changes that wait for their acknowledgement; beyond these the oldest are not measured."""


class Programming:
    """
    Pairs intents (by their sequence) with acknowledgements (of all intents up to a revision).

    Both come from streams of their own, in any order. Like kube-proxy it leaves out what was
    triggered before it started (`started_ms`, Unix milliseconds).
    """

    def __init__(self, started_ms: int) -> None:
        self._started_ms = started_ms
        self._pending: deque[tuple[int, int]] = deque(maxlen=PENDING_MAX)
        self._revision = 0

    def forget(self) -> None:
        """The intent stream is new."""
        self._pending.clear()
        self._revision = 0

    def changed(self, seq: int, trigger_ms: int | None, now_ms: int) -> list[float]:
        """An intent of a Service was read; seconds of what is known to be in force already."""
        if trigger_ms is None or trigger_ms < self._started_ms:
            return []
        if seq <= self._revision:
            return [_seconds(trigger_ms, now_ms)]
        self._pending.append((seq, trigger_ms))
        return []

    def applied(self, revision: int, now_ms: int) -> list[float]:
        """The switch holds all up to `revision`; seconds of what is in force now."""
        self._revision = revision
        found = [_seconds(trigger, now_ms) for seq, trigger in self._pending if seq <= revision]
        if found:
            left = (item for item in self._pending if item[0] > revision)
            self._pending = deque(left, maxlen=PENDING_MAX)
        return found


def _seconds(trigger_ms: int, now_ms: int) -> float:
    return max(0, now_ms - trigger_ms) / 1000
