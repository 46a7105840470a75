"""Denied packets become one line for each stream, bounded, and name policy and Pods."""

import struct
import time
from ipaddress import ip_address
from typing import Any

import pytest
from msgspec.structs import replace
from prometheus_client import CollectorRegistry

from dunlin.events.intents import AnyIntent, PolicyClassIntent, PolicyIntent, PolicyRule
from dunlin.openflow.flow import Controller, match
from dunlin.openflow.messages import PacketIn
from dunlin.pipeline import compile_intent
from dunlin_flowctl import denials as module
from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.core.desired import Desired, IntentVersion
from dunlin_flowctl.denials import Denials
from dunlin_flowctl.metrics import FlowctlMetrics
from tests.fixtures import cluster
from tests.unit.openflow.test_reject import V4, ipv4_frame

SUBJECTS = PolicyClassIntent(
    scope="all", key="ab", class_id=0xAB, role="ingress", isolated=True, log=True,
    policies=("/cluster", "default/one", "default/two"),
)  # fmt: skip
FIREWALL = PolicyIntent(
    scope="all", key="/firewall", tier="admin", priority=60000, log=True,
    rules=(PolicyRule(conj_id=9, direction="egress", index=3, action="Deny"),),
)  # fmt: skip


def userdata(intent: Any) -> bytes:
    """What the compiled flow that logs gives the controller."""
    flows = compile_intent(intent, None).flows
    (found,) = (a for flow in flows for a in flow.actions if isinstance(a, Controller))
    assert found.meter_id, "a flow without a meter would send every packet"
    return found.userdata


def datagram(source_port: int = 40000, port: int = 53) -> bytes:
    """From one Pod to another."""
    return ipv4_frame(17, struct.pack("!HHHH", source_port, port, 8, 0))


class Scene:
    """A replica that knows two Pods and two policies; the clock stands until it is moved."""

    def __init__(self, **settings: float) -> None:
        self.registry = CollectorRegistry()
        self.desired = Desired(PipelineCompiler())
        wanted: list[AnyIntent] = [
            replace(cluster.pod(1, number), ips=(ip_address(ip),))
            for number, ip in enumerate(V4, 1)
        ]
        for number, intent in enumerate((*wanted, SUBJECTS, FIREWALL), 1):
            self.desired.upsert(IntentVersion(intent, number))
        metrics = FlowctlMetrics(self.registry)
        self.denials = Denials(self.desired, FlowctlSettings(**settings), metrics)  # type: ignore[arg-type]

    def send(self, what: bytes = b"", data: bytes = b"", **metadata: Any) -> None:
        """One packet of a switch."""
        found = match(**metadata) if metadata else ()
        packet = PacketIn(
            0, "action", 40, 0, 1, data or datagram(), found, what or userdata(SUBJECTS)
        )
        self.denials.packet_in("n1", packet)

    def count(self, result: str) -> float:
        """How many ended so."""
        labels = {"result": result}
        return self.registry.get_sample_value("dunlin_flowctl_denials_total", labels) or 0.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds, to be moved by hand."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_isolation_names_everybody() -> None:
    """All NetworkPolicies that isolate, both Pods, both ports, and the Service that was asked."""
    scene = Scene()
    scene.send(ct_nw_dst=ip_address("10.96.0.9"), ct_tp_dst=80)
    (denial,) = scene.denials.latest(None, 10)
    assert denial.policies == ("default/one", "default/two")
    assert (denial.direction, denial.rule, denial.node) == ("ingress", -1, "n1")
    assert (denial.source, denial.source_ip, denial.source_port) == ("default/p11", V4[0], 40000)
    assert (denial.destination, denial.destination_port) == ("default/p12", 53)
    assert (denial.protocol, denial.asked) == ("UDP", "10.96.0.9:80")
    assert list(scene.denials.latest("elsewhere", 10)) == []
    assert list(scene.denials.latest("default", 10)) == [denial]


def test_a_rule_that_denies() -> None:
    """A ClusterNetworkPolicy's rule by its index."""
    scene = Scene()
    scene.send(userdata(FIREWALL))
    (denial,) = scene.denials.latest(None, 10)
    assert (denial.policies, denial.rule, denial.direction) == (("firewall",), 3, "egress")


def test_a_stream_is_one_entry(clock: list[float]) -> None:
    """Repetitions are counted, and said with the next entry, a window later."""
    scene = Scene(deny_log_window_s=10.0)
    for source_port in range(5):
        scene.send(data=datagram(source_port + 1))
    assert (scene.count("logged"), scene.count("repeated")) == (1, 4)
    scene.send(data=datagram(port=54))
    assert scene.count("logged") == 2
    clock[0] += 10
    scene.send()
    assert [one.packets for one in scene.denials.latest(None, 10)] == [5, 1, 1]


def test_everything_is_bounded(clock: list[float]) -> None:
    """Beyond the rate nothing is logged; what is kept and counted never grows beyond its bound."""
    scene = Scene(deny_log_rate=1.0, deny_log_burst=5000.0)
    for port in range(1, 6001):
        scene.send(data=datagram(port=port))
    assert (scene.count("logged"), scene.count("limited")) == (5000, 1000)
    assert len(list(scene.denials.latest(None, 10**6))) == module.KEPT_MAX
    assert len(scene.denials._streams) == module.STREAMS_MAX
    assert len(list(scene.denials.latest(None, 7))) == 7


def test_what_is_not_understood_is_counted() -> None:
    """No IP packet; a policy that has gone; userdata of another version."""
    scene = Scene()
    scene.send(data=bytes(60))
    assert scene.count("unreadable") == 1
    gone = PolicyClassIntent(
        scope="all", key="cd", class_id=0xCD, role="egress", isolated=True, log=True
    )
    scene.send(userdata(gone))
    scene.send(b"dunlin-denyR7:/firewall")
    scene.send(b"dunlin-deny\xff\xff")
    assert scene.count("unknown") == 3
    assert list(scene.denials.latest(None, 10)) == []
