"""Who may call the REST API: the bearer token for programs, a cookie that only reads for people."""

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given
from hypothesis import strategies as st

from dunlin.service.http import build
from dunlin.service.login import BODY_MAX_BYTES, COOKIE, SESSION_S, is_good, session
from dunlin.service.metrics import Metrics

TOKEN = "correct-horse-battery-staple"
NOW = 1_800_000_000
BEARER = {"Authorization": f"Bearer {TOKEN}"}
HTML = {"Accept": "text/html,*/*"}


def app_of(token: str | None = TOKEN) -> tuple[FastAPI, Metrics]:
    """A service with one thing to read and one to change."""
    metrics = Metrics("test", "1")
    api, _live, _ready = build("Dunlin test", "1", metrics, token)

    @api.get("/v1/things")
    async def read() -> str:
        return "things"

    @api.post("/v1/things")
    async def change() -> str:
        return "changed"

    return api, metrics


def browser(api: FastAPI, url: str = "http://dunlin.example") -> httpx.AsyncClient:
    """A browser that keeps cookies and follows nothing by itself."""
    return httpx.AsyncClient(transport=httpx.ASGITransport(api), base_url=url)


@pytest.fixture
def client() -> httpx.AsyncClient:
    """A browser that has nothing yet."""
    return browser(app_of()[0])


async def test_a_program_is_told_and_a_browser_is_led(client: httpx.AsyncClient) -> None:
    """401 for what asks for JSON, the way to /login for what asks for a page; probes are open."""
    refused = await client.get("/v1/things")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    led = await client.get("/v1/things", headers=HTML)
    assert (led.status_code, led.headers["location"]) == (303, "/login")
    assert (await client.get("/healthz")).status_code == 200
    assert (await client.get("/v1/things", headers=BEARER)).json() == "things"


async def test_a_login_reads_and_changes_nothing(client: httpx.AsyncClient) -> None:
    """The cookie reads until it is given back; it never writes; the token is not in it."""
    page = await client.get("/login")
    assert page.status_code == 200
    assert "form-action 'self'" in page.headers["content-security-policy"]
    done = await client.post("/login", data={"token": TOKEN})
    assert (done.status_code, done.headers["location"]) == (303, "./")
    cookie = done.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert f"max-age={SESSION_S}" in cookie
    assert TOKEN not in cookie
    assert (await client.get("/v1/things")).json() == "things"
    assert (await client.post("/v1/things")).status_code == 401
    await client.post("/logout")
    assert (await client.get("/v1/things")).status_code == 401


async def test_the_cookie_is_secure_where_the_connection_is() -> None:
    """Behind TLS the browser must not send it in the clear."""
    api, _metrics = app_of()
    async with browser(api, "https://dunlin.example") as client:
        done = await client.post("/login", data={"token": TOKEN})
        assert "; secure" in done.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "body",
    [
        b"token=wrong",
        b"token=",
        b"",
        b"token",
        b"\xff\xfe",
        b"a=1&b=2&c=3&d=4&token=" + TOKEN.encode(),
        b"x=" + b"a" * BODY_MAX_BYTES + b"&token=" + TOKEN.encode(),
    ],
)
async def test_what_is_not_the_token_is_refused(client: httpx.AsyncClient, body: bytes) -> None:
    """403, no cookie, and counted; whatever the body is."""
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    done = await client.post("/login", content=body, headers=headers)
    assert (done.status_code, "set-cookie" in done.headers) == (403, False)
    assert 'dunlin_logins_total{result="refused"' in (await client.get("/metrics")).text
    assert "not the token" in done.text


async def test_without_a_token_nobody_logs_in() -> None:
    """On loopback without a token everything is open and there is no /login."""
    api, _metrics = app_of(None)
    async with browser(api) as client:
        assert (await client.get("/v1/things")).json() == "things"
        assert (await client.get("/login")).status_code == 404


def test_a_session_ends_with_its_time_and_its_token() -> None:
    """Good until its last second, under its own token, on every replica that has it."""
    value = session(TOKEN, NOW + 10)
    assert is_good(TOKEN, value, NOW)
    assert not is_good(TOKEN, value, NOW + 10)
    assert not is_good("another", value, NOW)
    later = value.replace(str(NOW + 10), str(NOW + 99))
    assert not is_good(TOKEN, later, NOW)


@given(value=st.text(max_size=100) | st.from_regex(r"[0-9]{1,13}\.[0-9a-f]{0,64}", fullmatch=True))
def test_no_other_value_is_a_session(value: str) -> None:
    """Whatever a cookie holds, it is no session unless it was made as one."""
    assert not is_good(TOKEN, value, NOW)


async def test_a_cookie_of_octets_is_refused(client: httpx.AsyncClient) -> None:
    """A cookie that is no text is no session, and no error."""
    answer = await client.get(
        "/v1/things", headers={b"Cookie": f"{COOKIE}=\xe9\x00".encode("latin-1")}
    )
    assert answer.status_code == 401
