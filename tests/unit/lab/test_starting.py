"""Waiting for what has just been started."""

import socket

import pytest

from dunlin_lab.starting import UpError, wait_answers


def test_a_process_that_ended_is_told_at_once() -> None:
    """Nobody waits for an answer that cannot come; how long the wait would be does not matter."""
    looks = 0

    def alive() -> None:
        nonlocal looks
        looks += 1
        if looks == 3:
            raise UpError("flowctl/0 ended")

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(UpError, match="ended"):
            wait_answers(url, alive, timeout_s=3600.0)
    assert looks == 3


def test_what_serves_nothing_is_not_waited_for() -> None:
    """A process without a REST API has nothing to answer."""
    assert wait_answers("", lambda: None, timeout_s=3600.0) == ""
