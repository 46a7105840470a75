"""Programs that make load between namespaces: `netload` (ours, compiled once a run) and iperf3."""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import Unavailable
from dunlin_lab import netns

STREAM_PORT, LOAD_PORT = 5201, 5300

Place = Path | str
"""A network namespace."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The two programs that make load."""

    netload: str
    iperf3: str

    def serve(self, stack: ExitStack, place: Place) -> None:
        """Both servers in a namespace, until the stack is closed."""
        start(stack, place, [self.netload, "serve", str(LOAD_PORT)])
        start(stack, place, [self.iperf3, "-s", "-p", str(STREAM_PORT)])

    def load(self, place: Place, mode: str, address: str, *words: str) -> dict[str, Any]:
        """What netload prints in this mode; its page of words is in netload.c."""
        command = [self.netload, mode, address, str(LOAD_PORT), *words]
        found: dict[str, Any] = json.loads(output(place, command))
        return found

    def stream(self, place: Place, address: str, seconds: float) -> dict[str, Any]:
        """The sums of one TCP connection that iperf3 prints; it takes whole seconds only."""
        length = str(max(1, round(seconds)))
        command = [self.iperf3, "-c", address, "-p", str(STREAM_PORT), "-t", length, "-J"]
        end: dict[str, Any] = json.loads(output(place, command))["end"]
        return end


def start(stack: ExitStack, place: Place, command: Sequence[str]) -> None:
    """A server in a namespace, until the stack is closed."""
    process = netns.run_in(place, partial(_spawn, command))
    stack.callback(_end, process)


def output(place: Place, command: Sequence[str], text: str = "", limit_s: float = 60) -> str:
    """
    What a command that gets `text` prints in a namespace.

    Raises:
        RuntimeError: with the end of what it printed.
    """
    done = netns.run_in(
        place,
        lambda: subprocess.run(
            command, input=text, capture_output=True, text=True, timeout=limit_s, check=False
        ),
    )
    if done.returncode:
        said = f"{done.stdout[-500:]} {done.stderr[-500:]}"
        raise RuntimeError(f"{' '.join(command)}: {said}")
    return done.stdout


@contextmanager
def tools() -> Iterator[Tools]:
    """Raises Unavailable: no iperf3, or no C compiler."""
    iperf3, compiler = shutil.which("iperf3"), shutil.which("cc")
    if iperf3 is None or compiler is None:
        raise Unavailable("needs iperf3 and a C compiler (Debian: iperf3, build-essential)")
    with tempfile.TemporaryDirectory(prefix="dunlin-bench-") as directory:
        program = f"{directory}/netload"
        source = Path(__file__).with_name("netload.c")
        subprocess.run([compiler, "-O2", "-Wall", "-o", program, str(source)], check=True)
        yield Tools(program, iperf3)


def _spawn(command: Sequence[str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    process.wait(10)
