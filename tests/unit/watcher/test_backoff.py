"""Back-off."""

import pytest

from dunlin_watcher.adapters.kubernetes import retry_after_s
from dunlin_watcher.backoff import Backoff


def test_doubles_to_its_bound_with_jitter() -> None:
    """Each delay lies between half and the whole of a value that doubles up to the bound."""
    backoff = Backoff(1.0, 5.0)
    for whole in (1.0, 2.0, 4.0, 5.0, 5.0):
        assert whole / 2 <= backoff.next_s() <= whole
    backoff.reset()
    assert backoff.next_s() <= 1.0


def test_two_do_not_agree() -> None:
    """Jitter: two clients that fail together do not come back together."""
    first, second = Backoff(1.0, 60.0), Backoff(1.0, 60.0)
    assert [first.next_s() for _ in range(6)] != [second.next_s() for _ in range(6)]


def test_the_server_may_ask_for_more() -> None:
    """Retry-After is obeyed up to an hour; a smaller one does not shorten the delay."""
    backoff = Backoff(1.0, 60.0)
    assert backoff.next_s(30.0) == 30.0
    assert backoff.next_s(1e9) == 3600.0
    assert backoff.next_s(0.0) >= 2.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("7", 7.0), ("-3", 0.0), ("soon", None), ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0)],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    """Seconds or a date; what cannot be read asks for nothing."""
    assert retry_after_s(header) == seconds
