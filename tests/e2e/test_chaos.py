"""
Random faults under load, one after the other: whatever dies, nothing that runs notices.

DUNLIN_TEST_CHAOS_S: how long (45; `make soak` says 600). DUNLIN_TEST_CHAOS_SEED: which history; it
is printed, and a failure names it. The choices of a seed are always the same; how many of them fit
into the time is not.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator

import httpx
import pytest

from tests.e2e.lab_cluster import LabCluster, eventually, why_not
from tests.e2e.test_failover import Replicated, api_ready, unharmed

LENGTH_S = float(os.environ.get("DUNLIN_TEST_CHAOS_S", "45"))
SEED = int(os.environ.get("DUNLIN_TEST_CHAOS_SEED", "0")) or random.SystemRandom().getrandbits(31)
COUNTS = {"planner": 2, "flowctl": 2, "ipam": 2, "watcher": 2, "metrics": 2}
DOWN_MAX = 2
"""Faults at one time."""

pytestmark = [
    pytest.mark.root,
    pytest.mark.ovs,
    pytest.mark.nats,
    pytest.mark.slow,
    pytest.mark.timeout(300 + 3 * LENGTH_S),
]


class Chaos:
    """One seeded history: faults, repairs and changes of Services and Pods."""

    def __init__(self, lab: Replicated, seed: int) -> None:
        self.lab = lab
        self.random = random.Random(seed)  # noqa: S311 - a test's choices
        self.history: list[str] = []
        self.down: set[str] = set()
        self.stopped: dict[str, int] = {}
        self.cut_off: set[str] = set()
        self.services: set[str] = set()
        self.pods: set[str] = set()
        self._numbers = iter(range(10**6))

    def step(self) -> None:
        """One thing happens, drawn by weight; a fault is repaired before the third one comes."""
        choices: dict[Callable[[], None], int] = {
            self.kill: 4,
            self.stop: 2,
            self.cut: 1,
            self.vswitchd: 1,
            self.repair: 4,
            self.service: 3,
            self.pod: 2,
        }
        if len(self.down) + len(self.stopped) + len(self.cut_off) >= DOWN_MAX:
            choices = {self.repair: 1}
        if "apiserver" in self.down:
            # Nobody can ask for anything.
            choices = {chosen: n for chosen, n in choices.items() if chosen in self.faults()}
        (chosen,) = self.random.choices(list(choices), list(choices.values()))
        chosen()
        self.nobody_else_died()

    def faults(self) -> tuple[Callable[[], None], ...]:
        """What needs no Kubernetes API."""
        return (self.kill, self.stop, self.cut, self.vswitchd, self.repair)

    def nobody_else_died(self) -> None:
        """A service that ends by itself is a bug, also if somebody would start it again."""
        for item in self.lab.status()["services"]:
            name = f"{item['service']}/{item['replica']}"
            known = {name, item["service"]} & self.down
            assert item["up"] or known, f"{name} ended by itself:\n{self.lab.log_tail(name)}"

    def cut(self) -> None:
        """A node loses its control plane."""
        node = self.random.choice([node["name"] for node in self.lab.nodes])
        if node in self.cut_off:
            return
        self.history.append(f"cut off {node}")
        self._link(node, "down")
        self.cut_off.add(node)

    def _link(self, node: str, state: str) -> None:
        (place,) = (item["netns"] for item in self.lab.nodes if item["name"] == node)
        name = place.rpartition("/")[2]
        command = ["ip", "netns", "exec", name, "ip", "link", "set", "mgmt0", state]
        subprocess.run(command, check=True, timeout=10)

    def vswitchd(self) -> None:
        """A kill -9 of the last node's ovs-vswitchd: no connection that is watched goes there."""
        target = f"ovs-vswitchd/{self.lab.nodes[-1]['name']}"
        self.history.append(f"restart {target}")
        self.lab.kill(target)
        self.lab.start(target)

    def kill(self) -> None:
        """A kill -9 of one process: also nats-server, the Kubernetes API, an agent."""
        targets = [f"{name}/{index}" for name, count in COUNTS.items() for index in range(count)]
        targets += ["nats", "apiserver", *(f"agent/{node['name']}" for node in self.lab.nodes)]
        target = self.random.choice(sorted(set(targets) - self.down - set(self.stopped)))
        self.history.append(f"kill {target}")
        self.lab.kill(target)
        self.down.add(target)

    def stop(self) -> None:
        """SIGSTOP: it comes back later and believes what it believed."""
        name = self.random.choice(("planner", "flowctl", "ipam", "watcher"))
        target = f"{name}/{self.random.randrange(COUNTS[name])}"
        if target in self.down or target in self.stopped:
            return
        self.history.append(f"stop {target}")
        pid = self.lab.processes(name)[target.partition("/")[2]]["pid"]
        os.kill(pid, signal.SIGSTOP)
        self.stopped[target] = pid

    def repair(self) -> None:
        """What is down or stopped runs again."""
        for node in sorted(self.cut_off):
            self.history.append(f"join {node}")
            self._link(node, "up")
            self.cut_off.discard(node)
        for target in self.random.sample(sorted(self.down), min(1, len(self.down))):
            self.history.append(f"start {target}")
            self.lab.start(target)
            self.down.discard(target)
            if target == "apiserver":
                eventually("the API answers", lambda: api_ready(self.lab))
        for target in list(self.stopped):
            self.history.append(f"continue {target}")
            os.kill(self.stopped.pop(target), signal.SIGCONT)

    def service(self) -> None:
        """A Service comes, or the oldest goes."""
        if len(self.services) >= 3:
            name = min(self.services)
            self.services.discard(name)
            self.history.append(f"delete service {name}")
            self.lab.service_gone(name)
            return
        name = f"chaos-{next(self._numbers)}"
        self.history.append(f"create service {name}")
        self.lab.service_made(name)
        self.services.add(name)

    def pod(self) -> None:
        """A Pod comes, or one goes."""
        if len(self.pods) >= 2:
            name = min(self.pods)
            self.pods.discard(name)
            self.history.append(f"delete pod {name}")
            self.lab.api.delete(f"/api/v1/namespaces/failover/pods/{name}").raise_for_status()
            return
        name = f"chaos-{next(self._numbers)}"
        node = self.random.choice(self.lab.nodes)["name"]
        self.history.append(f"create pod {name} on {node}")
        self.lab.pod("failover", name, node)
        self.pods.add(name)

    def heal(self) -> None:
        """Everything runs, and what was made is gone."""
        while self.down or self.stopped or self.cut_off:
            self.repair()
        for name in self.services:
            self.lab.service_gone(name)
        for name in self.pods:
            self.lab.api.delete(f"/api/v1/namespaces/failover/pods/{name}").raise_for_status()


@pytest.fixture(scope="module")
def lab() -> Iterator[Replicated]:
    """The lab `chaos-<pid>`, taken down at the end."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    made = Replicated(f"ch-{os.getpid()}")
    try:
        made.up("--nodes", "3", *(f"--replicas={name}={count}" for name, count in COUNTS.items()))
        made.populate("failover")
        yield made
    finally:
        made.down()


def test_chaos(lab: Replicated) -> None:
    """No packet lost, no connection broken; after it flows and ledger are what they should be."""
    print(f"DUNLIN_TEST_CHAOS_SEED={SEED}")
    chaos = Chaos(lab, SEED)
    try:
        with unharmed(lab):
            try:
                end = time.monotonic() + LENGTH_S
                while time.monotonic() < end:
                    chaos.step()
            finally:
                chaos.heal()
            lab.ready()
            lab.pods_ready("failover", 3)
            lab.wait(60)
        eventually("the ledger is what the Pods have", lambda: _ledger(lab) == _addresses(lab))
    except BaseException as error:
        error.add_note(f"DUNLIN_TEST_CHAOS_SEED={SEED}: {'; '.join(chaos.history)}")
        raise


def _ledger(lab: LabCluster) -> list[str]:
    """Addresses that ipam says are allocated, each as often as it says so."""
    url = f"{lab.url('ipam')}/v1/ipam/addresses"
    items = httpx.get(url, trust_env=False).json()["items"]
    return sorted(item["ip"] for item in items if item["state"] == "allocated")


def _addresses(lab: LabCluster) -> list[str]:
    """Addresses that Pods have."""
    return sorted(ip for pod in lab.status()["pods"] for ip in pod["ips"])
