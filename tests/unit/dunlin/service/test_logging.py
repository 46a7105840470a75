"""Logs without secrets."""

import json
import logging as stdlib_logging
from collections.abc import Iterator

import pytest
import structlog

from dunlin.service import logging


@pytest.fixture
def restored() -> Iterator[None]:
    """The logging of this process as it was."""
    root = stdlib_logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.mark.usefixtures("restored")
def test_lines_are_json_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    """Both loggers give one JSON object a line, with service and replica, secrets hidden."""
    logging.setup("test", "r1")
    log = structlog.get_logger("x")
    log.info("connecting", url="nats://user:hunter2@host:4222", api_token="hunter2", note="ok")
    stdlib_logging.getLogger("y").warning("Authorization: Bearer hunter2hunter2")
    log.debug("hidden")
    text = capsys.readouterr().err
    first, second = (json.loads(line) for line in text.splitlines())
    assert "hunter2" not in text
    assert (first["url"], first["api_token"], first["note"]) == (
        "nats://***@host:4222",
        "***",
        "ok",
    )
    assert (first["service"], first["replica"], first["level"]) == ("test", "r1", "info")
    assert second["event"] == "Authorization: Bearer ***"


@pytest.mark.usefixtures("restored")
def test_exceptions_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """The traceback is in the line."""
    logging.setup("test", "r1", form="console")
    try:
        raise ValueError("boom")
    except ValueError:
        structlog.get_logger("x").exception("failed")
    assert "ValueError: boom" in capsys.readouterr().err
