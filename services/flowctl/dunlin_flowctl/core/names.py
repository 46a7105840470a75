"""Which Pod has an address."""

from dunlin.events.intents import AnyIntent, EndpointIntent
from dunlin.model.addresses import IPAddress


class PodNames:
    """Of all nodes, from the endpoint intents."""

    def __init__(self) -> None:
        self._pods: dict[IPAddress, str] = {}

    def put(self, old: AnyIntent | None, new: AnyIntent | None) -> None:
        """An intent came, changed or went; all but endpoints are passed over."""
        if isinstance(old, EndpointIntent):
            for ip in old.ips:
                if self._pods.get(ip) == _name(old):
                    del self._pods[ip]
        if isinstance(new, EndpointIntent):
            for ip in new.ips:
                self._pods[ip] = _name(new)

    def of(self, ip: IPAddress) -> str:
        """`<namespace>/<pod>`; "": no Pod of this cluster."""
        return self._pods.get(ip, "")


def _name(intent: EndpointIntent) -> str:
    return f"{intent.pod_namespace}/{intent.pod_name}"
