"""Services: defaults, validation, cluster addresses and node ports."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING

from dunlin_lab.apiserver.allocators import NODE_PORTS, ExhaustedError
from dunlin_lab.apiserver.errors import Cause, duplicate, invalid_value, required
from dunlin_lab.apiserver.strategies.base import Context, Plain, keep_status
from dunlin_lab.apiserver.strategies.checks import (
    check_ip,
    check_label_name,
    check_one_of,
    check_port,
    check_port_or_name,
    check_protocol,
)

if TYPE_CHECKING:
    from dunlin_lab.apiserver.allocators import Address
    from dunlin_lab.apiserver.values import Obj

HEADLESS = "None"
_EXPOSED = ("NodePort", "LoadBalancer")
_TYPES = ("ClusterIP", "ExternalName", "LoadBalancer", "NodePort")
_POLICIES = ("PreferDualStack", "RequireDualStack", "SingleStack")
_FAMILIES = ("IPv4", "IPv6")
_DUAL = 2
_AFFINITY_SECONDS = 10800
_PORT_RANGE = (
    "provided port is not in the valid range. The range of valid ports is "
    f"{NODE_PORTS.start}-{NODE_PORTS.stop - 1}"
)


class ServiceStrategy(Plain):
    """Services."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Set what defaulting and the registry set before validation."""
        if context.subresource == "status" and old is not None:
            obj["spec"] = old["spec"]
        keep_status(obj, old, context, {"loadBalancer": {}})
        spec = obj.setdefault("spec", {})
        spec.setdefault("type", "ClusterIP")
        if old is not None:
            _inherit(spec, old["spec"])
        _default_ports(spec)
        _default_policies(spec)
        if spec["type"] == "ExternalName":
            for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
                spec.pop(name, None)
        else:
            _sync_cluster_ips(spec, old["spec"] if old is not None else None)
            _default_families(spec, context.families)

    def validate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Check as ValidateService does, as far as this project reads Services."""
        spec = obj["spec"]
        found = check_one_of("spec.type", spec["type"], _TYPES)
        found += _check_ports(spec)
        affinities = ("ClientIP", "None")
        found += check_one_of("spec.sessionAffinity", spec["sessionAffinity"], affinities)
        if spec["type"] == "ExternalName":
            if not spec.get("externalName"):
                found.append(required("spec.externalName"))
            return found
        for index, item in enumerate(spec.get("externalIPs") or ()):
            found += check_ip(f"spec.externalIPs[{index}]", item)
        return found + _check_families(spec, context) + _check_cluster_ips(spec, old)

    def allocate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Take cluster addresses and node ports."""
        spec = obj["spec"]
        found: list[Cause] = []
        if spec["type"] != "ExternalName" and spec.get("clusterIP") != HEADLESS:
            found += _allocate_addresses(spec, old, context)
        if spec["type"] in _EXPOSED and spec.get("allocateLoadBalancerNodePorts", True):
            found += _allocate_node_ports(spec, old, context)
        return found


def addresses_of(spec: Obj) -> set[Address]:
    """Return the valid cluster addresses of a Service; injected bad ones are left out."""
    found: set[Address] = set()
    for item in spec.get("clusterIPs") or ():
        if not check_ip("", item):
            found.add(ip_address(item))
    return found


def node_ports_of(spec: Obj) -> set[int]:
    """Return the node ports of a Service."""
    found = {port["nodePort"] for port in spec.get("ports") or () if port.get("nodePort")}
    if spec.get("healthCheckNodePort"):
        found.add(spec["healthCheckNodePort"])
    return found


def _inherit(spec: Obj, old: Obj) -> None:
    """Keep allocated values that an update leaves out; drop those its type no longer has."""
    if spec["type"] != "ExternalName" and old.get("type") != "ExternalName":
        for name in ("clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy"):
            if name in old and not spec.get(name):
                spec[name] = old[name]
    single = spec.get("ipFamilyPolicy") == "SingleStack" != old.get("ipFamilyPolicy")
    if single and spec.get("ipFamilies") == old.get("ipFamilies"):
        for name in ("clusterIPs", "ipFamilies"):  # the second family is given up
            spec[name] = (spec.get(name) or [])[:1]
    before = {(p.get("protocol"), p.get("port")): p.get("nodePort") for p in old.get("ports", ())}
    for port in spec.get("ports") or ():
        allocated = before.get((port.get("protocol", "TCP"), port.get("port")))
        if spec["type"] in _EXPOSED:
            if not port.get("nodePort") and allocated:
                port["nodePort"] = allocated
        elif port.get("nodePort") == allocated:
            port.pop("nodePort", None)
    if spec["type"] not in _EXPOSED and old.get("type") in _EXPOSED:
        for name in ("externalTrafficPolicy", "healthCheckNodePort"):
            spec.pop(name, None)
    if spec["type"] != "LoadBalancer":
        spec.pop("allocateLoadBalancerNodePorts", None)


def _default_ports(spec: Obj) -> None:
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if port.get("targetPort") in (None, "", 0):
            port["targetPort"] = port.get("port", 0)


def _default_policies(spec: Obj) -> None:
    if spec.setdefault("sessionAffinity", "None") == "ClientIP":
        config = spec.setdefault("sessionAffinityConfig", {})
        config.setdefault("clientIP", {}).setdefault("timeoutSeconds", _AFFINITY_SECONDS)
    else:
        spec.pop("sessionAffinityConfig", None)
    if spec["type"] in _EXPOSED or spec.get("externalIPs"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    if spec["type"] != "ExternalName":
        spec.setdefault("internalTrafficPolicy", "Cluster")
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)


def _sync_cluster_ips(spec: Obj, old: Obj | None) -> None:
    """Keep clusterIP and clusterIPs[0] equal; the one that an update changed wins."""
    one, many = spec.get("clusterIP"), spec.get("clusterIPs")
    changed = old is not None and one != old.get("clusterIP")
    if one and (not many or (changed and many == (old or {}).get("clusterIPs"))):
        spec["clusterIPs"] = [one]
    elif many and not one:
        spec["clusterIP"] = many[0]


def _default_families(spec: Obj, available: list[str]) -> None:
    given = [item for item in spec.get("clusterIPs") or () if not check_ip("", item)]
    inferred = [f"IPv{ip_address(item).version}" for item in given]
    families: list[str] = list(spec.get("ipFamilies") or ()) or inferred
    bare = spec.get("clusterIP") == HEADLESS and not spec.get("selector")
    if not families:
        families = list(_FAMILIES) if available[0] == "IPv4" else list(reversed(_FAMILIES))
        families = families if bare and not spec.get("ipFamilyPolicy") else families[:1]
    dual = len(families) >= _DUAL or len(given) >= _DUAL
    policy = spec.setdefault("ipFamilyPolicy", "RequireDualStack" if dual else "SingleStack")
    if policy != "SingleStack" and len(families) == 1 and families[0] in _FAMILIES:
        other = next(item for item in _FAMILIES if item != families[0])
        if other in available or bare:
            families.append(other)
    spec["ipFamilies"] = families


def _check_ports(spec: Obj) -> list[Cause]:
    ports = spec.get("ports") or []
    if not ports:
        needs = spec["type"] != "ExternalName" and spec.get("clusterIP") != HEADLESS
        return [required("spec.ports")] if needs else []
    found: list[Cause] = []
    names: set[str] = set()
    numbers: set[tuple[str, int]] = set()
    for index, port in enumerate(ports):
        path, name = f"spec.ports[{index}]", port.get("name", "")
        if not name and len(ports) > 1:
            found.append(required(f"{path}.name"))
        elif name:
            found += check_label_name(f"{path}.name", name)
            if name in names:
                found.append(duplicate(f"{path}.name", name))
        names.add(name)
        found += check_port(f"{path}.port", port.get("port", 0))
        found += check_protocol(f"{path}.protocol", port["protocol"])
        found += check_port_or_name(f"{path}.targetPort", port["targetPort"])
        key = (port["protocol"], port.get("port", 0))
        if key in numbers:
            shown = {"name": name, "protocol": key[0], "port": key[1]}
            found.append(duplicate(path, shown))
        numbers.add(key)
    return found


def _check_families(spec: Obj, context: Context) -> list[Cause]:
    found = check_one_of("spec.ipFamilyPolicy", spec["ipFamilyPolicy"], _POLICIES)
    available = context.families
    bare = spec.get("clusterIP") == HEADLESS and not spec.get("selector")
    for index, family in enumerate(spec["ipFamilies"]):
        path = f"spec.ipFamilies[{index}]"
        if family not in _FAMILIES:
            found += check_one_of(path, family, _FAMILIES)
        elif family not in available and not bare:
            found.append(invalid_value(path, family, "not configured on this cluster"))
        elif family in spec["ipFamilies"][:index]:
            found.append(duplicate(path, family))
    if spec["ipFamilyPolicy"] == "RequireDualStack" and len(available) < _DUAL and not bare:
        text = "this cluster is not configured for dual-stack services"
        found.append(invalid_value("spec.ipFamilyPolicy", spec["ipFamilyPolicy"], text))
    if spec["ipFamilyPolicy"] == "SingleStack" and len(spec["ipFamilies"]) > 1:
        text = "may only hold one value when `ipFamilyPolicy` is SingleStack"
        found.append(invalid_value("spec.ipFamilies", spec["ipFamilies"], text))
    return found


def _check_cluster_ips(spec: Obj, old: Obj | None) -> list[Cause]:
    found: list[Cause] = []
    given = spec.get("clusterIPs") or []
    if given and given[0] == HEADLESS:
        if len(given) > 1:
            text = "'None' must be the first and only value"
            found.append(invalid_value("spec.clusterIPs", given, text))
        if spec["type"] != "ClusterIP":
            text = f"may not be set to 'None' for {spec['type']} services"
            found.append(invalid_value("spec.clusterIPs[0]", HEADLESS, text))
    else:
        for index, item in enumerate(given):
            found += check_ip(f"spec.clusterIPs[{index}]", item)
    before = (old or {}).get("spec", {}).get("clusterIPs") or []
    if before and given and given[0] != before[0]:
        text = "may not change once set"
        found.append(invalid_value("spec.clusterIPs[0]", given[0], text))
    return found


def _allocate_addresses(spec: Obj, old: Obj | None, context: Context) -> list[Cause]:
    before = addresses_of(old["spec"]) if old is not None else set()
    pools = {f"IPv{pool.cidr.version}": pool for pool in context.pools}
    given = list(spec.get("clusterIPs") or ())
    result: list[str] = []
    found: list[Cause] = []
    for index, family in enumerate(spec["ipFamilies"]):
        pool = pools.get(family)
        field = f"spec.clusterIPs[{index}]"
        if index < len(given):
            result.append(given[index])
            if check_ip(field, given[index]):
                continue  # an injected bad address: it is what the test wants to see stored
            address = ip_address(given[index])
            if address in before:
                continue
            if pool is None or not pool.allocatable(address):
                cidr = pool.cidr if pool is not None else "no Service CIDR"
                text = f"the provided IP ({address}) is not in the valid range {cidr}"
                found.append(invalid_value(field, given, text))
            elif address in pool.used:
                text = "failed to allocate IP: provided IP is already allocated"
                found.append(invalid_value(field, given, text))
        elif pool is not None:
            try:
                result.append(str(pool.choose(context.rng)))
            except ExhaustedError as error:
                found.append(invalid_value(field, None, f"failed to allocate IP: {error}"))
    if result:
        spec["clusterIP"], spec["clusterIPs"] = result[0], result
    return found


def _allocate_node_ports(spec: Obj, old: Obj | None, context: Context) -> list[Cause]:
    mine = node_ports_of(old["spec"]) if old is not None else set()
    taken = node_ports_of(spec)
    found: list[Cause] = []
    for index, port in enumerate(spec.get("ports") or ()):
        field, number = f"spec.ports[{index}].nodePort", port.get("nodePort")
        if not number:
            port["nodePort"] = context.node_ports.choose(context.rng, taken)
            taken.add(port["nodePort"])
        elif number not in mine and number not in NODE_PORTS:
            found.append(invalid_value(field, number, _PORT_RANGE))
        elif number not in mine and number in context.node_ports.used:
            found.append(invalid_value(field, number, "provided port is already allocated"))
    local = spec.get("externalTrafficPolicy") == "Local" and spec["type"] == "LoadBalancer"
    if local and not spec.get("healthCheckNodePort"):
        spec["healthCheckNodePort"] = context.node_ports.choose(context.rng, taken)
    return found
