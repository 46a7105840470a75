"""The HTTP side of a service: probes, metrics, errors as JSON; login.py says who may call."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException as StarletteHTTPException

from dunlin.service.login import Guard
from dunlin.service.metrics import Metrics

log = structlog.get_logger(__name__)

Check = Callable[[], str | None]
"""None when all is well, else the reason, for people."""


@dataclass
class Checks:
    """Named checks of one kind."""

    checks: dict[str, Check] = field(default_factory=dict)

    def add(self, name: str, check: Check) -> None:
        """Register a check; the same name replaces it."""
        self.checks[name] = check

    def answer(self) -> Response:
        """200 when every check passes, else 503; the body says which does not and why."""
        found = {name: self._reason(name, check) for name, check in self.checks.items()}
        ok = not any(found.values())
        body = {
            "status": "ok" if ok else "unavailable",
            "checks": {
                name: {"ok": reason is None, "reason": reason or ""}
                for name, reason in found.items()
            },
        }
        return JSONResponse(body, status_code=200 if ok else 503)

    @staticmethod
    def _reason(name: str, check: Check) -> str | None:
        try:
            return check()
        except Exception as error:
            log.exception("check failed", check=name)
            return f"{type(error).__name__}: {error}"


def _field(location: tuple[Any, ...]) -> str:
    """`query.limit`, `body.spec.0`."""
    return ".".join(map(str, location))


def build(
    title: str, version: str, metrics: Metrics, token: str | None
) -> tuple[FastAPI, Checks, Checks]:
    """The FastAPI app of a service, with its liveness and its readiness checks."""
    api = FastAPI(title=title, version=version)
    live, ready = Checks(), Checks()
    _add_probes(api, live, ready, metrics)
    _add_errors(api, metrics)
    if token is not None:
        api.add_middleware(Guard, token=token, title=title, metrics=metrics)
    return api, live, ready


def _add_probes(api: FastAPI, live: Checks, ready: Checks, metrics: Metrics) -> None:
    @api.get("/healthz", tags=["process"])
    async def healthz() -> Response:
        """The process works: 200, or 503 with what does not."""
        return live.answer()

    @api.get("/readyz", tags=["process"])
    async def readyz() -> Response:
        """The process can do its job now: 200, or 503 with what it waits for."""
        return ready.answer()

    @api.get("/metrics", tags=["process"])
    async def prometheus() -> Response:
        """Prometheus text format."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)


def _add_errors(api: FastAPI, metrics: Metrics) -> None:
    @api.exception_handler(StarletteHTTPException)
    async def http_error(_request: Request, error: StarletteHTTPException) -> Response:
        return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)

    @api.exception_handler(RequestValidationError)
    async def bad_request(request: Request, error: RequestValidationError) -> Response:
        metrics.bad_input("rest", "validation")
        found = [{"field": _field(e["loc"]), "reason": e["msg"]} for e in error.errors()]
        text = "; ".join(f"{item['field']}: {item['reason']}" for item in found)
        log.info("request refused", path=request.url.path, error=text)
        return JSONResponse({"error": text, "fields": found}, 422)

    @api.exception_handler(Exception)
    async def internal(request: Request, error: Exception) -> Response:
        log.error("request failed", path=request.url.path, exc_info=error)
        return JSONResponse({"error": f"internal error: {type(error).__name__}"}, 500)


def not_found(kind: str, name: str) -> HTTPException:
    """A 404 that names what is missing."""
    return HTTPException(404, f"{kind} {name!r} not found")
