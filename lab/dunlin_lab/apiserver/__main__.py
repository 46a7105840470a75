"""Wiring: `python -m dunlin_lab.apiserver`."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import os
import signal
import socket
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from dunlin_lab.apiserver.bootstrap import bootstrap
from dunlin_lab.apiserver.certificates import certificates_in
from dunlin_lab.apiserver.config import Settings, settings_from_args
from dunlin_lab.apiserver.controllers.manager import controllers_of, run_controllers
from dunlin_lab.apiserver.http import ApiServer
from dunlin_lab.apiserver.journal import FileJournal
from dunlin_lab.apiserver.registry import Registry
from dunlin_lab.apiserver.store import Store

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_log = logging.getLogger("dunlin_lab.apiserver")

_KEEP_ALIVE_SECONDS = 300
"""Longer than clients keep idle connections, so that no request meets a closing one."""


class _Server(uvicorn.Server):
    """uvicorn, ending watches before it waits for its connections."""

    def __init__(self, config: uvicorn.Config, app: ApiServer) -> None:
        super().__init__(config)
        self._app = app

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Let SIGTERM and SIGINT end `serve` only: uvicorn would kill the process with them."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End the streams, then stop."""
        self._app.stopping.set()
        await super().shutdown(sockets)


def kubeconfig(server: str, token: str, authority: bytes) -> str:
    """Return a kubeconfig (JSON, which is YAML); `authority` is PEM, empty without TLS."""
    name = "dunlin-lab"
    cluster = {"server": server}
    if authority:
        cluster["certificate-authority-data"] = base64.b64encode(authority).decode()
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": name,
            "clusters": [{"name": name, "cluster": cluster}],
            "users": [{"name": name, "user": {"token": token} if token else {}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
        },
        indent=1,
    )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    listener.listen(1024)
    listener.setblocking(False)
    return listener


def _write_private(path: Path, text: str) -> None:
    """Replace a file at once, readable by its owner only."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.touch(mode=0o600)
    partial.write_text(text)
    partial.replace(path)


def _configure(app: ApiServer, settings: Settings, port: int) -> uvicorn.Config:
    """Return uvicorn's options, and write the kubeconfig."""
    found = certificates_in(settings.data_dir, settings.host) if settings.tls else None
    if settings.kubeconfig_out is not None:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        scheme = "https" if found is not None else "http"
        authority = found.authority.read_bytes() if found is not None else b""
        text = kubeconfig(f"{scheme}://{host}:{port}", settings.token, authority)
        _write_private(settings.kubeconfig_out, text)
    return uvicorn.Config(
        app, lifespan="off", log_level="warning", access_log=False, http="httptools",
        timeout_graceful_shutdown=3,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS, server_header=False,
        ssl_certfile=found.certificate if found is not None else None,
        ssl_keyfile=found.key if found is not None else None,
    )  # fmt: skip


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    store = Store(history_max=settings.history)
    journal = FileJournal(settings.data_dir, fsync=settings.fsync)
    journal.load(store)
    registry = Registry(store, settings.service_cidrs, clock=time.time, validate=settings.validate)
    listener = _listen(settings)
    port = listener.getsockname()[1]
    bootstrap(registry, settings.host, port)
    app = ApiServer(registry, settings.token)
    config = _configure(app, settings, port)
    _log.info("listening on %s port %d, revision %d", settings.host, port, store.revision)
    controllers = asyncio.create_task(run_controllers(controllers_of(registry, settings)))
    try:
        await _Server(config, app).serve(sockets=[listener])
    finally:
        controllers.cancel()
        await asyncio.gather(controllers, return_exceptions=True)
        journal.close()


def main() -> None:
    """Run the server."""
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )  # fmt: skip
    uvloop.run(serve(settings_from_args(sys.argv[1:])))


if __name__ == "__main__":
    main()
