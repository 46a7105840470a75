"""The REST APIs that the command line calls, and where they are."""

import importlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

TIMEOUT_S = 10.0
RETRY_S = 0.1
_REFUSED = (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN, httpx.codes.UNPROCESSABLE_ENTITY)
"""Asking again will not help."""


class ApiError(Exception):
    """A service did not answer, or refused; the message names URL and reason."""


class WaitFailedError(ApiError):
    """Not everything is in force in time; the message says which switch lacks which objects."""


@dataclass(frozen=True, slots=True)
class Installation:
    """URL of each service: the lab's, or one base URL for all."""

    urls: dict[str, list[str]]
    token: str = ""

    def candidates(self, service: str) -> list[str]:
        """Every replica of a service."""
        found = self.urls.get(service) or self.urls.get("*")
        if not found:
            raise ApiError(f"no URL of {service}: is the lab up (dunlin lab up), or give --url")
        return found

    def get(self, service: str, path: str, **params: str) -> Any:
        """
        JSON of the first replica that answers.

        Raises:
            ApiError: none does, or the answer is an error.
        """
        return _json(next(self._answers(service, path, self._getting(params))))

    def every(self, service: str, path: str, **params: str) -> list[Any]:
        """
        JSON of each replica that answers.

        Raises:
            ApiError: none does, or an answer is an error.
        """
        return [_json(one) for one in self._answers(service, path, self._getting(params))]

    def post(self, service: str, path: str, body: Any, *, timeout_s: float = TIMEOUT_S) -> Any:
        """
        JSON of the first replica that answers `body`.

        Raises:
            ApiError: none does, or the answer is an error; what it says of objects, one a line.
        """
        options = {**self._options(), "timeout": timeout_s}
        response = next(
            self._answers(service, path, lambda url: httpx.post(url, json=body, **options))
        )
        if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
            raise ApiError(_refusal(response))
        return _json(response)

    def _getting(self, params: dict[str, str]) -> Callable[[str], httpx.Response]:
        return lambda url: httpx.get(url, params=params, **self._options())

    def _answers(
        self, service: str, path: str, send: Callable[[str], httpx.Response]
    ) -> Iterator[httpx.Response]:
        """Of each replica that answers, in their order. Raises ApiError: none does."""
        answered, problems = False, []
        for url in self.candidates(service):
            try:
                response = send(url + path)
            except httpx.HTTPError as error:
                problems.append(f"{url}{path}: {error}")
            else:
                answered = True
                yield response
        if not answered:
            raise ApiError(f"{service} does not answer: " + "; ".join(problems))

    def lines(
        self, service: str, path: str, **params: str | int | bool
    ) -> Iterator[dict[str, Any]]:
        """
        JSON lines as they come.

        Raises:
            ApiError: no replica answers.
        """
        url = self.candidates(service)[0] + path
        options = {**self._options(), "timeout": httpx.Timeout(TIMEOUT_S, read=None)}
        try:
            with httpx.stream("GET", url, params=params, **options) as response:
                if response.is_error:
                    response.read()
                    raise ApiError(f"{url}: {response.status_code} {response.text}")
                yield from (json.loads(line) for line in response.iter_lines() if line)
        except httpx.HTTPError as error:
            raise ApiError(f"{url}: {error}") from error

    def _options(self) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        return {"headers": headers, "timeout": TIMEOUT_S, "trust_env": False}


class BadRequestError(ApiError):
    """What was asked for cannot be understood; the message is the service's."""


def _refusal(response: httpx.Response) -> str:
    """Each object and field that is at fault."""
    answer = response.json()
    items = answer.get("items") or answer.get("fields") or ()
    lines = [
        ": ".join(str(item[key]) for key in ("object", "field", "reason") if item.get(key))
        for item in items
    ]
    return "\n  ".join(["refused", *(lines or [str(answer.get("error"))])])


def _json(response: httpx.Response) -> Any:
    if response.status_code == httpx.codes.UNPROCESSABLE_ENTITY:
        raise BadRequestError(response.json().get("error") or response.text)
    if response.is_error:
        raise ApiError(f"{response.url}: {response.status_code} {response.text}")
    return response.json()


def installation(url: str, lab: str) -> Installation:
    """
    The services at `url`, else those of the lab of that name.

    Raises:
        ApiError: neither a URL nor a lab.
    """
    if url:
        token_file = os.environ.get("DUNLIN_TOKEN_FILE", "")
        token = Path(token_file).read_text().strip() if token_file else ""
        return Installation({"*": [url.rstrip("/")]}, token)
    try:
        # The lab is a development tool: the command line works without it.
        places = importlib.import_module("dunlin_lab.places")
    except ModuleNotFoundError as error:
        raise ApiError("no --url given, and the lab is not installed") from error
    found: Installation = places.installation(lab)
    return found


def wait(urls: list[str], timeout_s: float, *, token: str = "") -> dict[str, Any]:
    """
    Wait until every switch has applied all that the Kubernetes API holds now.

    Any replica of flowctl (at `urls`) can tell. One that does not answer may just be starting: all
    of them are asked again until the time is over.

    Raises:
        WaitFailedError: not in time, or nobody answers.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        problems = []
        for url in urls:
            left_s = max(0.0, deadline - time.monotonic())
            try:
                return _wait(url, left_s, token)
            except WaitFailedError:
                raise
            except ApiError as error:
                problems.append(str(error))
        if time.monotonic() >= deadline:
            raise WaitFailedError(
                "nobody knows what is in force: " + "; ".join(problems) + f" ({timeout_s:g} s)"
            )
        time.sleep(RETRY_S)


def _wait(url: str, timeout_s: float, token: str) -> dict[str, Any]:
    """The same of one replica; ApiError: it does not answer, or cannot yet."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        response = httpx.post(
            f"{url}/v1/wait",
            params={"timeout_s": timeout_s},
            headers=headers,
            timeout=timeout_s + 5.0,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        raise ApiError(f"flowctl at {url} does not answer: {error}") from error
    # 504 is the answer of a wait that is over; anything else is of a process that is starting, or
    # of somebody else.
    if response.is_error and response.status_code != httpx.codes.GATEWAY_TIMEOUT:
        failure = WaitFailedError if response.status_code in _REFUSED else ApiError
        raise failure(f"flowctl at {url}: {response.status_code} {response.text}")
    answer: dict[str, Any] = response.json()
    if response.is_error or not answer.get("applied", False):
        raise WaitFailedError(explain(answer))
    return answer


def explain(answer: dict[str, Any]) -> str:
    """What an unfinished wait lacks, a line a switch."""
    lines = [answer.get("error") or answer.get("reason") or "not everything is in force"]
    for switch in answer.get("switches", ()):
        missing = [item["object"] or item["intent"] for item in switch.get("missing") or ()]
        if missing or not switch.get("applied", True):
            names = ", ".join(missing[:10]) or f"something: {switch.get('reason') or 'unknown'}"
            more = f" and {len(missing) - 10} more" if len(missing) > 10 else ""
            lines.append(f"  {switch.get('node')} lacks {names}{more}")
    return "\n".join(lines)
