"""
CNI ADD and DEL of one Pod interface: Dunlin's executable in a lab, the `bridge` plugin without one.

What is timed is what a container runtime waits for: the executable from its start to its end.
Dunlin's ADD returns when the Pod's flows are in force on its node's switch (address from ipam, port
in Open vSwitch, fact on NATS, intent, bundle, barrier); the bridge plugin's (with host-local for
its address) when the veth pair is in a Linux bridge. Between two measurements is a pause: nothing
of one runs into the other.
"""

import json
import os
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import baseline, lab
from bench.measure import Metric, Options, Table, Unavailable, percentile
from dunlin_lab import links, netns
from dunlin_lab.cni import Attachment
from dunlin_lab.paths import LabPaths
from dunlin_lab.starting import UpError
from dunlin_lab.up import cni_binary

PLUGINS = Path("/usr/lib/cni")
BRIDGE = "bridge + host-local"
DUNLIN = "Dunlin"
PAUSE_S = 0.03
TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Runtime:
    """One plugin as a container runtime calls it, in its node's namespace."""

    binary: Path
    node: Path
    conf: bytes
    paths: str

    def call(self, command: str, attachment: Attachment) -> float:
        """
        Milliseconds.

        Raises:
            RuntimeError: the plugin failed.
        """
        env = {
            **os.environ,
            **attachment.environment,
            "CNI_COMMAND": command,
            "CNI_PATH": self.paths,
        }
        return netns.run_in(self.node, lambda: self._run(command, env))

    def _run(self, command: str, env: dict[str, str]) -> float:
        started = time.perf_counter()
        done = subprocess.run(
            [self.binary],
            input=self.conf,
            env=env,
            capture_output=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        took = (time.perf_counter() - started) * 1000
        if done.returncode:
            raise RuntimeError(f"{self.binary.name} {command}: {done.stdout!r} {done.stderr!r}")
        return took


def _dunlin(cluster: lab.Lab) -> Runtime:
    try:
        binary = cni_binary()
    except UpError as error:
        raise Unavailable(str(error)) from error
    node = cluster.nodes[0]
    conf = {
        "cniVersion": "1.1.0",
        "name": "dunlin",
        "type": "dunlin-cni",
        "agentSocket": str(LabPaths.named(cluster.name).agent_socket(node["name"])),
    }
    return Runtime(binary, Path(node["netns"]), json.dumps(conf).encode(), str(binary.parent))


def _bridge(made: baseline.Networks, directory: str) -> Runtime:
    binary = PLUGINS / "bridge"
    if not binary.exists():
        raise Unavailable("no bridge plugin (Debian: containernetworking-plugins)")
    ranges = [[{"subnet": "10.205.0.0/16"}], [{"subnet": "fd00:205::/64"}]]
    conf: dict[str, Any] = {
        "cniVersion": "1.0.0",
        "name": "bench",
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {"type": "host-local", "ranges": ranges, "dataDir": directory},
    }
    return Runtime(binary, made.make("cni"), json.dumps(conf).encode(), str(PLUGINS))


@contextmanager
def _sandbox(name: str) -> Iterator[Path]:
    """A Pod's namespace, as a runtime hands it over."""
    path = netns.create(name)
    try:
        netns.run_in(path, _prepare)
        yield path
    finally:
        netns.delete(name)


def _prepare() -> None:
    # Or the bridge plugin waits for IPv6 duplicate address detection: seconds, and no work.
    for where in ("all", "default"):
        links.sysctl(f"ipv6/conf/{where}/accept_dad", "0")
    with links.route() as ipr:
        links.up(ipr, "lo")


def once(runtime: Runtime) -> tuple[float, float]:
    """ADD and DEL of one new Pod, in milliseconds."""
    container = uuid.uuid4().hex
    with _sandbox(f"dunlin-bench-{container[:12]}") as place:
        attachment = Attachment(
            container_id=container,
            netns=place,
            namespace="bench",
            name=f"pod-{container[:8]}",
            uid=str(uuid.uuid4()),
        )
        added = runtime.call("ADD", attachment)
        time.sleep(PAUSE_S)
        deleted = runtime.call("DEL", attachment)
        time.sleep(PAUSE_S)
        return added, deleted


def run(options: Options) -> list[Table]:
    """Raises Unavailable."""
    metrics = [
        Metric(f"{command} {share}", "ms") for command in ("ADD", "DEL") for share in ("p50", "p99")
    ]
    table = Table("CNI ADD and DEL of one Pod", metrics, BRIDGE)
    each = 10 if options.quick else 50
    with ExitStack() as stack:
        directory = tempfile.mkdtemp(prefix="dunlin-bench-")
        stack.callback(shutil.rmtree, directory)
        made = stack.enter_context(baseline.networks())
        bridge = _bridge(made, directory)
        cluster = stack.enter_context(lab.running(1))
        ways = {BRIDGE: bridge, DUNLIN: _dunlin(cluster)}
        for runtime in ways.values():
            once(runtime)
        for number in range(options.rounds(5)):
            options.progress(f"{table.title}: round {number + 1}")
            samples: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for _ in range(each):
                for name, runtime in ways.items():
                    samples[name].append(once(runtime))
            for name, found in samples.items():
                added, deleted = zip(*found, strict=True)
                points = (
                    percentile(values, share)
                    for values in (added, deleted)
                    for share in (0.5, 0.99)
                )
                figures = dict(zip((m.name for m in metrics), points, strict=True))
                table.row(name).add(**figures)
    table.notes.append(f"{each} Pods a round and way, one at a time, both with IPv4 and IPv6")
    return [table]
