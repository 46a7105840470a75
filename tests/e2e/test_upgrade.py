"""
Rolling restarts under load: to the next release, to the same one, and back. No packet is lost.

The previous release is the commit in tests/e2e/previous-release. Its code runs beside today's: the
same interpreter and libraries, its own packages. A lab of its own.
That the probes see losses is what tests/e2e/test_probes.py shows.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from dunlin_lab.catalogue import CONTROL_PLANE
from tests.e2e.lab_cluster import REPOSITORY, WebCluster, eventually, why_not
from tests.e2e.traffic import HttpProbe, UdpProbe, get, stop_all

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.timeout(480),
]

ORDER = (*CONTROL_PLANE, "agent")
"""As docs/operate.md says it, and back."""
THE_REST = ("nats", "apiserver", "runner")
"""With ORDER all but Open vSwitch, whose restart interrupts its node (docs/LIMITS.md)."""


def previous() -> str:
    """The commit of the previous release."""
    return (REPOSITORY / "tests/e2e/previous-release").read_text(encoding="ascii").strip()


def git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In this repository."""
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def unpack(directory: Path) -> None:
    """The previous release's files."""
    archive = subprocess.run(
        ["git", "-C", str(REPOSITORY), "archive", previous()], capture_output=True, check=True
    )
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive.stdout, check=True)


class Upgraded(WebCluster):
    """A lab whose processes are of one release or the other, each for itself."""

    old: dict[str, str]
    made = 0

    def processes(self, services: tuple[str, ...]) -> list[dict[str, Any]]:
        """Of these services, in their order."""
        found = self.status()["services"]
        return [item for name in services for item in found if item["service"] == name]

    def releases(self) -> dict[str, str]:
        """`old` or `new` for each process of Dunlin, by what its environment says."""
        found = {}
        for item in self.processes(ORDER):
            environment = Path(f"/proc/{item['pid']}/environ").read_bytes().split(b"\0")
            path = f"PYTHONPATH={self.old['PYTHONPATH']}".encode()
            release = "old" if path in environment else "new"
            found[f"{item['service']}/{item['replica']}"] = release
        return found

    def restart(self, item: dict[str, Any], release: str) -> None:
        """As a rolling update does it: SIGTERM, then the other one; ready before the next."""
        target = f"{item['service']}/{item['replica']}"
        os.kill(item["pid"], signal.SIGTERM)
        eventually(f"{target} has ended", lambda: not Path(f"/proc/{item['pid']}").exists())
        self.env = self.old if release == "old" else {}
        self.start(target)
        self.env = {}
        eventually(f"{target} is ready", lambda: self._answers_ready(item))

    @staticmethod
    def _answers_ready(item: dict[str, Any]) -> bool:
        if not item["url"] or item["service"] == "apiserver":
            return True
        try:
            url = f"{item['url']}/readyz"
            return httpx.get(url, timeout=2.0, trust_env=False).status_code == 200
        except httpx.HTTPError:
            return False

    def roll(self, services: tuple[str, ...], release: str) -> None:
        """Restart all of it, one process after the other; a change works after each service."""
        for name in services:
            for item in self.processes((name,)):
                self.restart(item, release)
            self.ready()
            eventually("the Kubernetes API answers", self._api_ready)
            self.change(name)

    def change(self, what: str) -> None:
        """A new Service reaches every switch, whoever is of which release, and goes again."""
        self.made += 1
        name = f"{what}-{self.made}"
        address = self.service("upgrade", name, {"app": "web"})[0]
        eventually(f"a new Service works after {what}", lambda: self._answers(address))
        path = f"/api/v1/namespaces/upgrade/services/{name}"
        self.api.delete(path).raise_for_status()
        self.wait()

    def _answers(self, address: str) -> bool:
        try:
            return bool(get(self.client["netns"], address, 80, 0.5))
        except OSError:
            return False

    def _api_ready(self) -> bool:
        try:
            return bool(self.api.get("/readyz").status_code == 200)
        except httpx.HTTPError:
            return False

    def pod_comes_and_goes(self) -> None:
        """CNI ADD and DEL by the agents, addresses by ipam."""
        node = self.nodes[1]["name"]
        self.pod("upgrade", "d-extra", node)
        extra = self.pods_ready("upgrade", 4)[-1]
        assert get(self.client["netns"], extra["ips"][0], 8080)["pod"] == "d-extra"
        self.api.delete("/api/v1/namespaces/upgrade/pods/d-extra").raise_for_status()
        self.pods_ready("upgrade", 3)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upgraded]:
    """The lab `upg-<pid>`, all of it of the previous release."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    if git("cat-file", "-e", previous()).returncode != 0:
        pytest.skip(f"the previous release {previous()[:10]} is not in this clone (a shallow one?)")
    directory = tmp_path_factory.mktemp("previous")
    unpack(directory)
    packages = [directory, directory / "lab", *sorted((directory / "services").iterdir())]
    made = Upgraded(f"upg-{os.getpid()}")
    made.old = {
        "PYTHONPATH": ":".join(map(str, packages)),
        "DUNLIN_CNI": str(REPOSITORY / "build/bin/dunlin-cni"),
    }
    options = [f"--replicas={service}=2" for service in ("watcher", "planner", "flowctl")]
    try:
        made.env = made.old
        made.up("--nodes", "2", *options)
        made.env = {}
        made.populate("upgrade")
        yield made
    finally:
        made.env = {}
        made.down()


@contextmanager
def unharmed(lab: Upgraded) -> Iterator[None]:
    """Meanwhile no datagram is lost and no connection breaks, within a node and between nodes."""
    place = lab.client["netns"]
    probes: list[UdpProbe | HttpProbe] = [
        *(UdpProbe(place, pod["ips"][0], 8080) for pod in lab.servers),
        UdpProbe(place, lab.address, 53),
        HttpProbe(place, lab.address, keep=True, pause_s=0.01),
        HttpProbe(place, lab.address, pause_s=0.02),
    ]
    try:
        eventually("traffic runs", lambda: all(p.counts.answered > 10 for p in probes))
        yield
    finally:
        results = stop_all(probes)
    assert all(counts.lost == 0 and not counts.errors for counts in results), results


@pytest.mark.parametrize(
    "again", [pytest.param((), id="once"), pytest.param(ORDER, id="twice", marks=pytest.mark.soak)]
)
def test_rolling_restarts_lose_no_packet(lab: Upgraded, again: tuple[str, ...]) -> None:
    """From the previous release to this one, what it runs on, and back; under load."""
    assert set(lab.releases().values()) == {"old"}
    with unharmed(lab):
        lab.roll(ORDER, "new")
        lab.pod_comes_and_goes()
    assert set(lab.releases().values()) == {"new"}
    lab.wait()
    before = [lab.flows(node) for node in lab.nodes]
    with unharmed(lab):
        # To the same release once more: what tests/e2e/test_faults.py does with SIGKILL.
        lab.roll((*THE_REST, *again), "new")
    lab.wait()
    eventually("flows as before", lambda: [lab.flows(n) for n in lab.nodes] == before)
    with unharmed(lab):
        # The old ones leave out what they do not know.
        lab.roll(ORDER[::-1], "old")
        lab.pod_comes_and_goes()
    assert set(lab.releases().values()) == {"old"}
