"""`dunlin wait` from the client's side: replicas that do not answer, or not yet."""

import json
from typing import Any

import httpx
import pytest

from dunlin.cli import api
from dunlin.cli.api import ApiError, WaitFailedError, wait

URLS = ["http://a", "http://b"]
DONE = {"applied": True, "revision": 7, "switches": []}


class Replicas:
    """Answers by URL, one after the other; the last one stays. None: nobody listens."""

    def __init__(self, **answers: list[tuple[int, Any] | None]) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def post(self, url: str, **_options: Any) -> httpx.Response:
        """In place of httpx.post."""
        host = httpx.URL(url).host
        self.asked.append(host)
        left = self.answers[host]
        answer = left.pop(0) if len(left) > 1 else left[0]
        if answer is None:
            raise httpx.ConnectError("refused")
        return httpx.Response(answer[0], content=json.dumps(answer[1]))


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask again at once."""
    monkeypatch.setattr(api, "RETRY_S", 0.0)


def use(monkeypatch: pytest.MonkeyPatch, **answers: list[tuple[int, Any] | None]) -> Replicas:
    """Let httpx.post ask these."""
    replicas = Replicas(**answers)
    monkeypatch.setattr(httpx, "post", replicas.post)
    return replicas


def test_a_starting_flowctl_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody listens, then the routes are not there yet, then it answers."""
    starting: list[tuple[int, Any] | None] = [None, (404, {"error": "Not Found"}), (200, DONE)]
    use(monkeypatch, a=starting, b=[None])
    assert wait(URLS, 5.0) == DONE


def test_another_replica_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead replica costs nothing."""
    replicas = use(monkeypatch, a=[None], b=[(200, DONE)])
    assert wait(URLS, 5.0) == DONE
    assert replicas.asked == ["a", "b"]


def test_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """The answer of a wait that timed out is final, and names what is lacking."""
    lacks = {"node": "n1", "applied": False, "missing": [{"object": "pod/t/x", "intent": "i"}]}
    answer = {"applied": False, "reason": "not in force on every switch", "switches": [lacks]}
    use(monkeypatch, a=[(504, answer)], b=[None])
    with pytest.raises(WaitFailedError, match="n1 lacks pod/t/x"):
        wait(URLS, 5.0)


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them are named; a refused token is not tried for long."""
    use(monkeypatch, a=[None], b=[(500, {"error": "oh"})])
    with pytest.raises(WaitFailedError, match=r"http://a does not answer.*http://b: 500"):
        wait(URLS, 0.0)
    use(monkeypatch, a=[(401, {"error": "token"})], b=[None])
    with pytest.raises(ApiError, match="401"):
        wait(URLS, 60.0)
