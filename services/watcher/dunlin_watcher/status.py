"""How each kind fares, for people and metrics."""

import time
from dataclasses import dataclass


@dataclass
class Status:
    """How one kind fares, for people. `heard_at`: monotonic time of the last sign of life."""

    watching: bool = False
    heard_at: float | None = None
    last_error: str = ""
    last_error_ms: int = 0
    relists: int = 0
    watch_restarts: int = 0
    absent: bool = False

    def silence_s(self) -> float:
        """Seconds since the last sign of life; NaN before the first."""
        return float("nan") if self.heard_at is None else time.monotonic() - self.heard_at
