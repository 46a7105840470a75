"""Counts of what the bus went through in this process; `dunlin.service` shows them as metrics."""

from collections import Counter

HANDLER_ERRORS: Counter[str] = Counter()
"""Requests whose handler raised, by subject."""

DISCONNECTS: Counter[str] = Counter()
"""Connections lost, by server URL (without user information)."""

RESUMES: Counter[tuple[str, str]] = Counter()
"""Consumers made anew after the first, by (stream, reason)."""
