"""Which Services ask for a health check, their endpoints here, and the answers: pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from dunlin.events.intents import LocalServiceIntent, ServicePortIntent

GRACE_S = 60.0
"""So long may the switch lag behind before load balancers are told; kube-proxy takes as long."""

Name = tuple[str, str]
"""Namespace and name of a Service."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"


class HealthChecks:
    """Services with a healthCheckNodePort, and the local endpoints of all; from intents."""

    def __init__(self) -> None:
        self._ports: dict[str, tuple[Name, int]] = {}
        self._local: dict[str, tuple[Name, frozenset[tuple[int, str]]]] = {}

    def put(self, intent: ServicePortIntent | LocalServiceIntent) -> None:
        """A newer version of an intent."""
        name = (intent.service_namespace, intent.service_name)
        if isinstance(intent, ServicePortIntent):
            self._ports.pop(intent.id, None)
            if intent.health_check_node_port:
                self._ports[intent.id] = (name, intent.health_check_node_port)
            return
        found = {(part.version, str(e.ip)) for part in intent.families for e in part.local}
        self._local[intent.id] = (name, frozenset(found))

    def remove(self, intent_id: str) -> None:
        """An intent is gone."""
        self._ports.pop(intent_id, None)
        self._local.pop(intent_id, None)

    def clear(self) -> None:
        """Nothing is known."""
        self._ports.clear()
        self._local.clear()

    def ports(self) -> dict[int, Name]:
        """Every port to listen on; one that two Services claim is the first's by name."""
        claims = sorted(self._ports.values(), reverse=True)
        return {port: name for name, port in claims}

    def endpoints(self, name: Name) -> int:
        """Local Pods behind a Service; of a dual-stack one as many as its larger family has."""
        found = set[tuple[int, str]]()
        for owner, ips in self._local.values():
            if owner == name:
                found |= ips
        return max((sum(v == version for v, _ in found) for version in (4, 6)), default=0)

    def answer(self, port: int, *, healthy: bool) -> Reply:
        """As kube-proxy's: 200 with local endpoints while the proxy itself is well, else 503."""
        name = self.ports().get(port)
        if name is None:
            return Reply(503, b"{}\n")
        count = self.endpoints(name)
        body = {
            "service": {"namespace": name[0], "name": name[1]},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        }
        status = 200 if count and healthy else 503
        weight = ("X-Load-Balancing-Endpoint-Weight", str(count))
        return Reply(status, json.dumps(body).encode() + b"\n", (weight,))


@dataclass(slots=True)
class ProxyHealth:
    """Whether the node's switch does what it should. Times: monotonic seconds, Unix seconds."""

    updated_at: float | None = None
    behind_since: float | None = None

    def observe(self, problem: str | None, now_s: float, unix_s: float) -> None:
        """`problem`: why the switch is not up to date now; None: it is."""
        if problem is None:
            self.updated_at, self.behind_since = unix_s, None
        elif self.behind_since is None:
            self.behind_since = now_s

    def healthy(self, now_s: float) -> bool:
        """It was up to date once, and is again or has not lagged for longer than GRACE_S."""
        if self.updated_at is None:
            return False
        return self.behind_since is None or now_s - self.behind_since < GRACE_S

    def answer(self, path: str, now_s: float, unix_s: float, *, eligible: bool) -> Reply:
        """/healthz and /livez; the former is 503, too, while the node is going away."""
        if path not in {"/healthz", "/livez"}:
            return Reply(404, b"{}\n")
        well = self.healthy(now_s) and (eligible or path == "/livez")
        body: Mapping[str, object] = {
            "lastUpdated": _time(self.updated_at or 0.0),
            "currentTime": _time(unix_s),
            "nodeEligible": eligible,
        }
        return Reply(200 if well else 503, json.dumps(body).encode() + b"\n")


def _time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat()
