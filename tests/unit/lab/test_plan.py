"""What `lab up` will start, without starting it."""

from pathlib import Path

import pytest

from dunlin_lab.paths import LabPaths
from dunlin_lab.plan import (
    OptionError,
    Options,
    Site,
    agent_spec,
    control_plane_specs,
    openflow_targets,
    parse_replicas,
    userspace_tso,
)
from dunlin_lab.state import NodeState


@pytest.fixture
def site(tmp_path: Path) -> Site:
    """A lab of one node; ports count up from 2000."""
    ports = iter(range(2000, 3000))
    node = NodeState("n1", 1, "/run/netns/x", ("172.31.0.11",), "198.18.0.11", "/run/ovs/n1")
    return Site(
        paths=LabPaths("plan", tmp_path),
        mgmt_ip="198.18.0.1",
        nodes=(node,),
        kubeconfig=tmp_path / "kubeconfig",
        nats_url="nats://x",
        token_file=tmp_path / "token",
        userspace_tso=True,
        port=lambda _host: next(ports),
    )


def test_replicas_have_names_and_ports_of_their_own(site: Site) -> None:
    """Two replicas of a service share nothing, and metrics asks every flowctl."""
    specs = control_plane_specs(site, Options(replicas={"flowctl": 3, "planner": 2}))
    assert len({spec.process for spec in specs}) == len(specs) == 8
    urls = [spec.url for spec in specs]
    assert len(set(urls)) == len(urls)
    (metrics,) = [spec for spec in specs if spec.service == "metrics"]
    flowctls = [spec.url for spec in specs if spec.service == "flowctl"]
    assert metrics.env["DUNLIN_FLOWCTL_URLS"].split(",") == flowctls


def test_every_bridge_connects_to_every_flowctl(site: Site) -> None:
    """The agent is told all listen addresses."""
    options = Options(replicas={"flowctl": 2})
    targets = openflow_targets(control_plane_specs(site, options))
    assert len(targets.split(",")) == 2
    env = agent_spec(site, site.nodes[0], options, targets).env
    assert env["DUNLIN_OPENFLOW_CONTROLLERS"] == targets


def test_encapsulation_reaches_planner_and_agent(site: Site) -> None:
    """Both must agree: one makes the port, the other the routes through it."""
    options = Options(encapsulation="vxlan")
    specs = control_plane_specs(site, options)
    (planner,) = [spec for spec in specs if spec.service == "planner"]
    agent = agent_spec(site, site.nodes[0], options, "")
    assert planner.env["DUNLIN_ENCAPSULATION"] == agent.env["DUNLIN_ENCAPSULATION"] == "vxlan"


@pytest.mark.parametrize("word", ["planner", "planner=0", "planner=x", "nats=2", "planner=10"])
def test_bad_replicas_are_named(word: str) -> None:
    """The error repeats what the user wrote."""
    with pytest.raises(OptionError, match=word):
        parse_replicas([word])


@pytest.mark.parametrize(
    ("encapsulation", "version", "expected"),
    [("auto", "3.1.0", True), ("geneve", "3.1.0", False), ("vxlan", "3.5.0", True)],
)
def test_tso_and_tunnels(encapsulation: str, version: str, expected: bool) -> None:
    """Tunnels with userspace TSO are dead before OVS 3.5."""
    assert userspace_tso(encapsulation, version) is expected  # type: ignore[arg-type]
