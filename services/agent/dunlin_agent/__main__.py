"""Wiring of the agent."""

import sys
from collections.abc import Callable
from typing import Final

from dunlin.pipeline.layout import Table
from dunlin.pipeline.node_clients import takes_node_clients
from dunlin.service.app import ServiceApp, run_service
from dunlin_agent import rest
from dunlin_agent.adapters.ipam import Ipam
from dunlin_agent.adapters.links import PodLinks
from dunlin_agent.adapters.node_net import NodeNet
from dunlin_agent.adapters.openflow_local import LocalSwitchError, dump_flows
from dunlin_agent.adapters.ovs_spec import GATEWAY_PORT, INTEGRATION_BRIDGE
from dunlin_agent.adapters.ovsdb import Ovs
from dunlin_agent.adapters.vswitchd import Vswitchd
from dunlin_agent.cni import CniServer
from dunlin_agent.config import Settings
from dunlin_agent.connections import ConnectionServer
from dunlin_agent.conntrack.shell import Reconcile
from dunlin_agent.external_shell import ExternalFlows
from dunlin_agent.facts import Facts
from dunlin_agent.health.kubeproxy import KubeProxy, now_ms
from dunlin_agent.health.shell import Health
from dunlin_agent.intents import Intents
from dunlin_agent.metrics import AgentMetrics
from dunlin_agent.node import Node
from dunlin_agent.pods import Pods
from dunlin_agent.state import Neighbour
from dunlin_agent.steering.kernel import SteeringKernel
from dunlin_agent.steering.shell import Steer
from dunlin_agent.timeouts.shell import ClosedConnections

SWITCH_SECONDS: Final = 0.0005


async def setup(app: ServiceApp[Settings]) -> None:
    """
    Connect to OVS and the bus, then set the node up and answer CNI calls.

    The CNI socket is there from the start: until the node is ready it answers with code 50.
    """
    settings = app.settings
    metrics = AgentMetrics(app.metrics)
    bus = await app.connect_bus()
    ovs = Ovs(f"unix:{settings.ovs_rundir}/db.sock")
    app.ready("ovsdb", lambda: None if ovs.connected else "no session with ovsdb-server")
    await ovs.start()
    app.on_stop("ovsdb", ovs.close)
    vswitchd = Vswitchd(settings.ovs_rundir)
    net = NodeNet(settings.state_dir / f"{settings.node}-uplink.json")
    app.on_stop("node-net", net.close)
    links = PodLinks()
    app.on_stop("links", links.close)
    proxy = KubeProxy()
    facts = Facts(bus, settings.node, metrics, now_ms=now_ms, on_applied=proxy.applied)
    ipam = Ipam(bus, settings.node)
    node = Node(settings, facts, ovs, net, vswitchd, ipam, metrics)
    pods = Pods(
        facts,
        ovs,
        links,
        ipam,
        metrics,
        add_timeout_s=settings.add_timeout_s,
        not_ready=node.not_ready,
    )
    server = CniServer(settings.agent_socket, pods, metrics.observe_cni)
    await server.start()
    app.on_stop("cni", server.stop)
    app.ready("node", node.not_ready)
    app.api.include_router(rest.router(facts, node))

    steer = _steer(settings, facts, node, net, vswitchd)
    app.on_stop("steering", steer.close)
    external = ExternalFlows(settings, facts, ovs, steer.own_frontends)
    health = Health(
        bus, settings.node, settings.healthz_port, _problem(facts, node), metrics, proxy
    )
    app.on_stop("health", health.close)

    async def seed(neighbour: Neighbour) -> None:
        await vswitchd.set_neighbour("br-ext", neighbour.ip, neighbour.mac)

    app.task("follow-facts", facts.follow_facts())
    app.task("follow-state", facts.follow_state())
    app.task("publish", facts.publish(seed))
    app.task("ports", pods.watch())
    app.task("node", node.run())
    intents = Intents(bus, settings.node, metrics)
    reconcile = Reconcile(settings.ovs_rundir, facts, intents, vswitchd, metrics)
    closed = ClosedConnections(ovs, facts, settings.closed_connection_s, metrics)
    app.task("intents", intents.follow((health, steer, reconcile, closed)))
    app.task("closed-connections", closed.run())
    app.task("steering", steer.run())
    app.task("conntrack", reconcile.run())
    app.task("health-node", health.follow_node())
    app.task("health-watch", health.watch())
    app.task("health", health.serve())
    app.task("kube-proxy-metrics", proxy.serve(settings.proxy_metrics_bind))
    app.task("external", external.keep())
    connections = ConnectionServer(bus, settings.node, vswitchd)
    app.task("connections", connections.serve(), may_end=True)


def _steer(settings: Settings, facts: Facts, node: Node, net: NodeNet, vswitchd: Vswitchd) -> Steer:
    """The node's own processes: from when br-int has flows for them."""

    async def served() -> bool:
        switch = facts.state.switch
        if node.not_ready() is not None or switch is None:
            return False
        table = int(Table.CONNTRACK_STATE)
        try:
            flows = await dump_flows(settings.ovs_rundir, INTEGRATION_BRIDGE, table)
        except LocalSwitchError:
            return False
        return takes_node_clients(flows, switch.gateway_port)

    kernel = SteeringKernel(GATEWAY_PORT)
    ports = (settings.node_port_min, settings.node_port_max)
    return Steer(kernel, net, vswitchd, served, ports, facts.metrics, facts.pulse.beat)


def _problem(facts: Facts, node: Node) -> Callable[[], str | None]:
    """Why the node's switch is not up to date."""

    def problem() -> str | None:
        applied = facts.applied
        if applied is None or not applied.connected:
            return "the switch has no controller"
        if applied.pending:
            return f"{applied.pending} intents are not in force yet"
        return node.not_ready()

    return problem


def main() -> None:
    """Run until SIGTERM."""
    # Four threads hand work to each other for every Pod; Python's 5 ms between them would add up.
    sys.setswitchinterval(SWITCH_SECONDS)
    run_service("agent", Settings, setup, title="Dunlin agent")


if __name__ == "__main__":
    main()
