"""
Who may call the REST API: programs by a bearer token, people's browsers by a cookie (ADR 0024).

A person gives the token once, at /login, and gets a cookie that says until when it is good. The
cookie is no secret of its own: an HMAC under the token, which every replica can check and which a
new token ends. It allows reading only (GET, HEAD), so no other site can make a browser change
anything; HttpOnly and SameSite=Strict keep it from scripts and from other sites' links.
"""

import hashlib
import hmac
import time
from collections.abc import Callable
from urllib.parse import parse_qs

import structlog
from prometheus_client import Counter
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from dunlin.service.metrics import Metrics

log = structlog.get_logger(__name__)

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics"})
COOKIE = "dunlin_session"
SESSION_S = 8 * 3600
BODY_MAX_BYTES = 4096
READING = frozenset({"GET", "HEAD"})
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def session(token: str, until_s: int) -> str:
    """The cookie's value: `<unix time>.<hex>`; good until that time, under that token."""
    proof = hmac.new(token.encode(), f"{COOKIE} {until_s}".encode(), hashlib.sha256)
    return f"{until_s}.{proof.hexdigest()}"


def is_good(token: str, value: str, now_s: float) -> bool:
    """Whether `session` made this value for this token, and it is not over."""
    until, _, _ = value.partition(".")
    if not (until.isascii() and until.isdecimal() and len(until) <= 12) or int(until) <= now_s:
        return False
    return hmac.compare_digest(session(token, int(until)).encode(), value.encode())


class Guard:
    """ASGI middleware: everything but probes, metrics and /login needs the token or a session."""

    def __init__(
        self,
        app: ASGIApp,
        token: str,
        title: str,
        metrics: Metrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.app, self._token, self._title, self._clock = app, token, title, clock
        self._expected = f"Bearer {token}".encode()
        self._logins = Counter(
            "dunlin_logins", "Tokens given at /login.", ["result"], registry=metrics.registry
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, answer /login and /logout, or refuse."""
        if scope["type"] == "lifespan" or scope.get("path") in OPEN_PATHS:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._websocket(scope, receive, send)
        elif scope["path"] in {"/login", "/logout"}:
            answer = await self._session(Request(scope, receive))
            await answer(scope, receive, send)
        elif self._may(Request(scope)):
            await self.app(scope, receive, send)
        else:
            await self._refusal(Request(scope))(scope, receive, send)

    def _may(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").encode()
        if hmac.compare_digest(given, self._expected):
            return True
        cookie = request.cookies.get(COOKIE, "")
        return request.method in READING and is_good(self._token, cookie, self._clock())

    async def _websocket(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = dict(scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, self._expected):
            await self.app(scope, receive, send)
            return
        await receive()
        await send({"type": "websocket.close", "code": 1008, "reason": "bearer token required"})

    def _refusal(self, request: Request) -> Response:
        """A browser is shown the way to /login, a program is told what is missing."""
        if request.method == "GET" and "text/html" in request.headers.get("accept", ""):
            where = request.scope.get("root_path", "") + "/login"
            return RedirectResponse(where, 303, headers={"Cache-Control": "no-store"})
        refusal = {"error": "bearer token required"}
        return JSONResponse(refusal, 401, headers={"WWW-Authenticate": "Bearer"})

    async def _session(self, request: Request) -> Response:
        """The form, its answer, the end of a session."""
        if request.url.path == "/logout" and request.method == "POST":
            answer: Response = RedirectResponse("login", 303, headers=HEADERS)
            answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
            return answer
        if request.url.path == "/login" and request.method in READING:
            return HTMLResponse(self._page(""), headers=HEADERS)
        if request.url.path == "/login" and request.method == "POST":
            return await self._login(request)
        return JSONResponse({"error": "Method Not Allowed"}, 405)

    async def _login(self, request: Request) -> Response:
        given = await _token_of(request)
        if given is None or not hmac.compare_digest(given.encode(), self._token.encode()):
            self._logins.labels("refused").inc()
            client = request.client.host if request.client else ""
            log.warning("login refused", client=client)
            return HTMLResponse(self._page("This is not the token."), 403, headers=HEADERS)
        self._logins.labels("ok").inc()
        answer = RedirectResponse("./", 303, headers=HEADERS)
        answer.set_cookie(
            COOKIE,
            session(self._token, int(self._clock()) + SESSION_S),
            max_age=SESSION_S,
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="strict",
        )
        return answer

    def _page(self, problem: str) -> str:
        return PAGE.replace("@TITLE@", self._title).replace("@PROBLEM@", problem)


async def _token_of(request: Request) -> str | None:
    """The field `token` of a form; None where the body is none, or too long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > BODY_MAX_BYTES:
            return None
    try:
        fields = parse_qs(body.decode("ascii"), strict_parsing=True, max_num_fields=4)
    except ValueError:
        return None
    return fields.get("token", [""])[0].strip()


PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@ · log in</title>
<style>
:root { color-scheme: light dark; --bg: light-dark(#f5f7f9, #0f1419);
  --card: light-dark(#fff, #171e26); --ink: light-dark(#18212b, #e3e9ef);
  --soft: light-dark(#5d6b7a, #8d9cab); --line: light-dark(#dbe2e9, #2a3541);
  --accent: light-dark(#0b7a75, #35c2b8); --bad: light-dark(#d33f49, #ff6b73); }
body { margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--bg);
  color: var(--ink); font: 15px/1.5 system-ui, "DejaVu Sans", sans-serif; }
form { background: var(--card); border: 1px solid var(--line); border-radius: 12px;
  padding: 28px; width: min(360px, 84vw); box-shadow: 0 4px 14px rgba(20, 30, 40, .07); }
h1 { font-size: 18px; margin: 0 0 18px; }
label { color: var(--soft); font-size: 13px; }
input { box-sizing: border-box; width: 100%; margin: 6px 0 16px; padding: 9px 11px; font: inherit;
  color: inherit; background: var(--bg); border: 1px solid var(--line); border-radius: 8px; }
button { width: 100%; padding: 9px; font: inherit; font-weight: 600; color: #fff;
  background: #0b7a75; border: 0; border-radius: 8px; cursor: pointer; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 1px; }
p { color: var(--soft); font-size: 12px; margin: 16px 0 0; }
.problem { color: var(--bad); font-size: 13px; min-height: 1.5em; margin: 0 0 8px; }
</style>
</head>
<body>
<form method="post" action="login">
<h1>@TITLE@</h1>
<div class="problem" role="alert">@PROBLEM@</div>
<label for="token">Token of the REST API</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button type="submit">Log in</button>
<p>It is in the Secret dunlin-api. This browser may then read for eight hours.</p>
</form>
</body>
</html>
"""
