"""The agent's own metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from dunlin.service.metrics import Metrics

SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class AgentMetrics:
    """`common` is the process's set."""

    def __init__(self, common: Metrics) -> None:
        self.common = common
        registry = common.registry
        self.cni_requests = Counter(
            "dunlin_cni_requests_total",
            "CNI calls answered; code 0 is success.",
            ["command", "code"],
            registry=registry,
        )
        self.cni_seconds = Histogram(
            "dunlin_cni_duration_seconds",
            "From a CNI call's arrival to its answer.",
            ["command"],
            buckets=SECONDS,
            registry=registry,
        )
        self.add_seconds = Histogram(
            "dunlin_cni_add_step_duration_seconds",
            "Parts of CNI ADD: address, link, port, in_force.",
            ["step"],
            buckets=SECONDS,
            registry=registry,
        )
        self.attachments = Gauge(
            "dunlin_agent_attachments", "Pod interfaces on this node.", registry=registry
        )
        self.vswitchd_restarts = Counter(
            "dunlin_agent_vswitchd_restarts_total",
            "Lives of ovs-vswitchd that ended while the agent watched.",
            registry=registry,
        )
        self.setup_failures = Counter(
            "dunlin_agent_setup_failures_total",
            "Attempts to set the node up that failed.",
            ["error"],
            registry=registry,
        )

        self.health_ports = Gauge(
            "dunlin_agent_health_check_ports",
            "Ports with health checks of load balancers: of Services, and healthz.",
            registry=registry,
        )
        self.health_bind_errors = Counter(
            "dunlin_agent_health_check_bind_errors_total",
            "Attempts to listen on such a port that failed.",
            registry=registry,
        )
        self.steering_routes = Gauge(
            "dunlin_agent_steering_routes",
            "Addresses at which the node's own processes are led to br-int, one a port and family.",
            registry=registry,
        )
        self.steering_failures = Counter(
            "dunlin_agent_steering_failures_total",
            "Attempts to bring the kernel's rules and routes to that which it refused in part.",
            registry=registry,
        )
        self._of_conntrack(registry)

    def _of_conntrack(self, registry: CollectorRegistry) -> None:
        self.stale_connections = Counter(
            "dunlin_agent_stale_connections_total",
            "UDP connections removed that led where no Service sent them, found by two looks.",
            registry=registry,
        )
        self.closed_connection_zones = Gauge(
            "dunlin_agent_closed_connection_zones",
            "Conntrack zones with a timeout for closed TCP connections, by whose it is.",
            ["owner"],
            registry=registry,
        )
        self.conntrack_seconds = Histogram(
            "dunlin_agent_conntrack_look_duration_seconds",
            "One look through conntrack by ovs-vswitchd's control socket.",
            buckets=SECONDS,
            registry=registry,
        )

    def observe_cni(self, command: str, code: int, seconds: float) -> None:
        """For `CniServer`."""
        self.cni_requests.labels(command, str(code)).inc()
        self.cni_seconds.labels(command).observe(seconds)
