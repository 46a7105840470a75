"""Building and calling the CNI executable, and an agent that answers as told."""

import json
import os
import socket
import struct
import subprocess
import threading
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self

REPOSITORY = Path(__file__).parents[3]
SOURCES = REPOSITORY / "services/agent/cni"


@cache
def build(target: str) -> Path:
    """`dunlin-cni`, or `dunlin-cni-asan` which stops at the first bad memory access."""
    goal = {"dunlin-cni": "all", "dunlin-cni-asan": "asan"}[target]
    subprocess.run(["make", "-s", "-C", str(SOURCES), goal], check=True, capture_output=True)
    return REPOSITORY / "build/bin" / target


@dataclass(frozen=True)
class Call:
    """How a call ended."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def body(self) -> Any:
        """The JSON that was printed."""
        return json.loads(self.stdout)


def call(program: Path, command: str | None, stdin: bytes, **environment: str) -> Call:
    """Run the executable with exactly this environment (and a stack of its own)."""
    if command is not None:
        environment["CNI_COMMAND"] = command
    done = subprocess.run(
        [program], input=stdin, env=environment, capture_output=True, timeout=30, check=False
    )
    return Call(done.returncode, done.stdout, done.stderr)


ADD_ENVIRONMENT = {
    "CNI_CONTAINERID": "c0ffee",
    "CNI_NETNS": "/run/netns/pod",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-1;IgnoreUnknown=1",
    "CNI_PATH": "/opt/cni/bin",
}


@dataclass
class Responder:
    """A unix socket that answers each connection with these bytes, and keeps what it was sent."""

    path: Path
    answer: bytes
    requests: list[bytes] = field(default_factory=list)

    def __enter__(self) -> Self:
        """Listen."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(os.fspath(self.path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop listening."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                header = connection.recv(4, socket.MSG_WAITALL)
                if len(header) < 4:
                    continue
                (length,) = struct.unpack("!I", header)
                self.requests.append(connection.recv(length, socket.MSG_WAITALL))
                connection.sendall(self.answer)
