"""A token bucket, without a clock of its own."""


class TokenBucket:
    """At most `burst` at once, `rate` a second in the long run."""

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._at = 0.0

    def take(self, now_s: float) -> bool:
        """One of it, if there is one at this (monotonic) second."""
        gained = max(0.0, now_s - self._at) * self._rate
        self._tokens = min(self._burst, self._tokens + gained)
        self._at = max(self._at, now_s)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
