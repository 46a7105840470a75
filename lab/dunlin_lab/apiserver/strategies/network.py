"""NetworkPolicies, EndpointSlices and Endpoints."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.errors import Cause, forbidden_field, invalid_value, required
from dunlin_lab.apiserver.strategies.base import Context, Plain
from dunlin_lab.apiserver.strategies.checks import (
    check_ip,
    check_one_of,
    check_port_or_name,
    check_protocol,
    check_selector,
    is_port,
)

if TYPE_CHECKING:
    from dunlin_lab.apiserver.allocators import Network
    from dunlin_lab.apiserver.values import Obj

_ADDRESS_TYPES = ("FQDN", "IPv4", "IPv6")
_POLICY_TYPES = ("Egress", "Ingress")
_BAD_CIDR = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
_ENDPOINTS_MAX = 1000


class NetworkPolicyStrategy(Plain):
    """NetworkPolicies."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Default the protocol and the policy types."""
        spec = obj.setdefault("spec", {})
        spec.setdefault("podSelector", {})
        for rule in [*(spec.get("ingress") or ()), *(spec.get("egress") or ())]:
            for port in rule.get("ports") or ():
                port.setdefault("protocol", "TCP")
        if not spec.get("policyTypes"):
            spec["policyTypes"] = ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"]

    def validate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Check peers and ports."""
        spec = obj["spec"]
        found = check_selector("spec.podSelector", spec["podSelector"])
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for index, rule in enumerate(spec.get(direction) or ()):
                path = f"spec.{direction}[{index}]"
                for at, port in enumerate(rule.get("ports") or ()):
                    found += _check_policy_port(f"{path}.ports[{at}]", port)
                for at, peer in enumerate(rule.get(peers) or ()):
                    found += _check_peer(f"{path}.{peers}[{at}]", peer)
        for index, kind in enumerate(spec["policyTypes"]):
            found += check_one_of(f"spec.policyTypes[{index}]", kind, _POLICY_TYPES)
        return found


def _check_policy_port(path: str, port: Obj) -> list[Cause]:
    found = check_protocol(f"{path}.protocol", port["protocol"])
    number, end = port.get("port"), port.get("endPort")
    if number is not None:
        found += check_port_or_name(f"{path}.port", number)
    if end is None:
        return found
    if number is None:
        text = "may not be specified when `port` is not specified"
        found.append(invalid_value(f"{path}.endPort", end, text))
    elif isinstance(number, str):
        text = "may not be specified when `port` is non-numeric"
        found.append(invalid_value(f"{path}.endPort", end, text))
    elif not is_port(end) or end < number:
        text = "must be greater than or equal to `port`"
        found.append(invalid_value(f"{path}.endPort", end, text))
    return found


def _check_peer(path: str, peer: Obj) -> list[Cause]:
    found: list[Cause] = []
    for name in ("podSelector", "namespaceSelector"):
        if name in peer:
            found += check_selector(f"{path}.{name}", peer[name])
    if "ipBlock" in peer:
        if len(peer) > 1:
            text = "may not specify both ipBlock and another peer"
            found.append(forbidden_field(path, text))
        found += _check_ip_block(f"{path}.ipBlock", peer["ipBlock"])
    elif not peer:
        found.append(required(path, "must specify a peer"))
    return found


def _network(text: str) -> Network | None:
    try:
        return ip_network(text, strict=False) if "/" in text else None
    except ValueError:
        return None


def _check_ip_block(path: str, block: Obj) -> list[Cause]:
    if not block.get("cidr"):
        return [required(f"{path}.cidr")]
    cidr = _network(block["cidr"])
    if cidr is None:
        return [invalid_value(f"{path}.cidr", block["cidr"], _BAD_CIDR)]
    found: list[Cause] = []
    for index, item in enumerate(block.get("except") or ()):
        field, inner = f"{path}.except[{index}]", _network(item)
        if inner is None:
            found.append(invalid_value(field, item, _BAD_CIDR))
        elif (
            inner.version != cidr.version
            or inner.network_address not in cidr
            or inner.prefixlen <= cidr.prefixlen
        ):
            found.append(invalid_value(field, item, "must be a strict subset of `cidr`"))
    return found


class EndpointSliceStrategy(Plain):
    """EndpointSlices; their empty lists read as null, as the real ones do."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Default the ports."""
        for name in ("endpoints", "ports"):
            obj[name] = obj.get(name) or None
        for port in obj["ports"] or ():
            port.setdefault("name", "")
            port.setdefault("protocol", "TCP")

    def validate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Check addresses against the address type."""
        kind = obj.get("addressType", "")
        found = check_one_of("addressType", kind, _ADDRESS_TYPES) if kind else []
        if not kind:
            found.append(required("addressType"))
        if old is not None and old.get("addressType") != kind:
            found.append(invalid_value("addressType", kind, "field is immutable"))
        endpoints = obj["endpoints"] or ()
        if len(endpoints) > _ENDPOINTS_MAX:
            text = f"Too many: {len(endpoints)}: must have at most {_ENDPOINTS_MAX} items"
            found.append(Cause("FieldValueTooMany", text, "endpoints"))
        for index, endpoint in enumerate(endpoints):
            addresses = endpoint.get("addresses") or ()
            if not addresses:
                found.append(required(f"endpoints[{index}].addresses"))
            for at, address in enumerate(addresses):
                found += _check_address(f"endpoints[{index}].addresses[{at}]", address, kind)
        for index, port in enumerate(obj["ports"] or ()):
            found += check_protocol(f"ports[{index}].protocol", port["protocol"])
        return found


def _check_address(field: str, address: str, kind: str) -> list[Cause]:
    if kind == "FQDN":
        return []
    found = check_ip(field, address)
    if not found and f"IPv{ip_address(address).version}" != kind:
        text = f"must be an {kind} address"
        found.append(invalid_value(field, address, text))
    return found


class EndpointsStrategy(Plain):
    """Endpoints."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Default the protocol."""
        for subset in obj.get("subsets") or ():
            for port in subset.get("ports") or ():
                port.setdefault("protocol", "TCP")
