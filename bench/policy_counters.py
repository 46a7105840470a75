"""
What counting established traffic by rule costs, on real packets between Pods of one node.

Both Pods are selected in both directions; each of 16 rules allows one port, and each has one
connection. "not counted": one flow above all others leads established packets past both metric
tables, so that no megaflow looks at ct_label. ADR 0018 has the figures.
"""

import json
import os
import re
import subprocess
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from bench import lab
from bench.load import Tools, start, tools
from bench.measure import Metric, Options, Table, take_turns
from bench.ovs import main_thread_us
from dunlin.pipeline.layout import Table as Pipeline

RULES = 16
PORT = 5400
STREAM_RULE = 5201
METRICS = (
    Metric("TCP", "Gbit/s", lower_is_better=False, digits=2),
    Metric("request/response", "1/s", lower_is_better=False, digits=0),
    Metric("switch, a packet", "us", digits=2),
    Metric("megaflows", "", digits=0),
)
PLAIN, COUNTED = "policies, not counted", "policies, counted by rule"
WARM_S = 0.2
POLICIES = f"/apis/networking.k8s.io/v1/namespaces/{lab.NAMESPACE}/networkpolicies"
PAST = f"table={int(Pipeline.EGRESS_METRIC)},priority=60000,ip"


class Scene:
    """Two Pods on one node, and what the switch says of its work."""

    def __init__(self, cluster: lab.Lab, load: Tools, seconds: float) -> None:
        self.cluster, self.load, self.seconds = cluster, load, seconds
        self.node = cluster.nodes[0]
        pods = cluster.pods(client=self.node["name"], server=self.node["name"])
        self.client = pods["client"]["netns"]
        self.server = pods["server"]["netns"]
        self.address = pods["server"]["ips"][0]
        cluster.wait()
        self.pid = int((Path(self.node["ovs_rundir"]) / "ovs-vswitchd.pid").read_text())

    def policies(self) -> None:
        """Both of them."""
        for name, side, peer in (("server", "ingress", "client"), ("client", "egress", "server")):
            ports = [PORT + i for i in range(RULES)] + [STREAM_RULE]
            end = {"podSelector": {"matchLabels": {"app": peer}}}
            rules = [
                {"ports": [{"port": port}], {"ingress": "from", "egress": "to"}[side]: [end]}
                for port in ports
            ]
            spec = {
                "podSelector": {"matchLabels": {"app": name}},
                "policyTypes": [side.title()],
                side: rules,
            }
            self.cluster.create(POLICIES, {"metadata": {"name": name}, "spec": spec})
        self.cluster.wait()

    def measure(self, way: str) -> Mapping[str, float]:
        """One round."""
        if way == PLAIN:
            self._ovs("ovs-ofctl", "add-flow", "br-int", f"{PAST},actions=goto_table:60")
        else:
            self._ovs("ovs-ofctl", "--strict", "del-flows", "br-int", PAST)
        self._ovs("ovs-appctl", "revalidator/purge")
        self._rr(WARM_S)
        self._ovs("ovs-appctl", "dpif-netdev/pmd-stats-clear")
        before = main_thread_us(self.pid)
        rate = self._rr(self.seconds)
        cost, megaflows = (main_thread_us(self.pid) - before) / self._packets(), self._megaflows()
        stream = self.load.stream(self.client, self.address, self.seconds)
        values = (stream["sum_received"]["bits_per_second"] / 1e9, rate, cost, megaflows)
        return {metric.name: value for metric, value in zip(METRICS, values, strict=True)}

    def _rr(self, seconds: float) -> float:
        """One connection a rule, all at once."""
        with ThreadPoolExecutor(RULES) as pool:
            found = pool.map(lambda port: self._one(port, seconds), range(PORT, PORT + RULES))
            return sum(found)

    def _one(self, port: int, seconds: float) -> float:
        command = [self.load.netload, "rr", self.address, str(port), str(seconds)]
        prefix = ["nsenter", f"--net={self.client}"]
        done = subprocess.run(
            [*prefix, *command], capture_output=True, text=True, timeout=60, check=True
        )
        found: dict[str, float] = json.loads(done.stdout)
        return 1e6 / found["p50_us"]

    def _packets(self) -> int:
        """Received by all threads since the counters were cleared."""
        text = self._ovs("ovs-appctl", "dpif-netdev/pmd-stats-show")
        return sum(map(int, re.findall(r"packets received: ([0-9]+)", text))) or 1

    def _megaflows(self) -> float:
        return float(len(self._ovs("ovs-appctl", "dpctl/dump-flows").splitlines()))

    def _ovs(self, program: str, *arguments: str) -> str:
        env = {**os.environ, "OVS_RUNDIR": self.node["ovs_rundir"]}
        of = ["-O", "OpenFlow15"] if program == "ovs-ofctl" else []
        done = subprocess.run(
            [program, *of, *arguments],
            env=env, capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{program} {arguments}: {done.stderr}")
        return done.stdout

    def serve(self, stack: ExitStack) -> None:
        """A server for each rule, and for the stream."""
        ports = range(PORT, PORT + RULES)
        commands: list[list[str]] = [[self.load.netload, "serve", str(p)] for p in ports]
        commands.append([self.load.iperf3, "-s", "-p", str(STREAM_RULE)])
        for command in commands:
            start(stack, self.server, command)


def run(options: Options) -> list[Table]:
    """Raises Unavailable."""
    table = Table("Established traffic of Pods of one node", METRICS, PLAIN)
    with ExitStack() as stack:
        load = stack.enter_context(tools())
        scene = Scene(stack.enter_context(lab.running(1)), load, 0.5 if options.quick else 2.0)
        scene.serve(stack)
        scene.policies()
        ways = {name: partial(scene.measure, name) for name in (PLAIN, COUNTED)}
        take_turns(ways, table, options.rounds(5), options.progress)
        table.notes.append(f"datapath {scene.cluster.datapath}; {RULES} rules each way, in use")
    return [table]
