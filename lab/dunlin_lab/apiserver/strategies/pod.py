"""Pods and Pod templates."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dunlin_lab.apiserver.errors import Cause, duplicate, forbidden_field, required
from dunlin_lab.apiserver.resources import NODES
from dunlin_lab.apiserver.strategies.base import Context, Plain, keep_status
from dunlin_lab.apiserver.strategies.checks import (
    check_ip,
    check_label_name,
    check_one_of,
    check_port,
    check_port_or_name,
    check_protocol,
)
from dunlin_lab.apiserver.values import Obj, labels_of, thaw

if TYPE_CHECKING:
    from dunlin_lab.apiserver.store import Store

TOPOLOGY_LABELS = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")
_NOT_READY = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")
_IMMUTABLE = (
    "pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only "
    "additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set "
    "to 1 if it was previously negative)"
)


class PodStrategy(Plain):
    """Pods."""

    def prepare(self, obj: Obj, old: Obj | None, context: Context) -> None:
        """Set what defaulting and the admission plug-ins set."""
        if context.subresource == "status" and old is not None:
            obj["spec"] = old["spec"]
            _sync_pod_ips(obj.setdefault("status", {}))
        spec = obj.setdefault("spec", {})
        default_pod_spec(spec)
        _admit(spec)
        initial = {"phase": "Pending", "qosClass": qos_class(spec)}
        keep_status(obj, old, context, initial)
        for found in obj["status"].get("conditions") or ():
            found.setdefault("lastProbeTime", None)
            found.setdefault("lastTransitionTime", None)
        if old is None and spec.get("nodeName"):
            copy_topology(obj, context.store)

    def validate(self, obj: Obj, old: Obj | None, context: Context) -> list[Cause]:
        """Check what is read in this project."""
        found = check_pod_spec("spec", obj["spec"])
        before = old["spec"] if old is not None and not context.subresource else None
        if before is not None and _fixed(obj["spec"]) != _fixed(before):
            found.append(forbidden_field("spec", _IMMUTABLE))
        for index, item in enumerate(obj["status"].get("podIPs") or ()):
            found += check_ip(f"status.podIPs[{index}].ip", item.get("ip", ""))
        return found


def copy_topology(obj: Obj, store: Store) -> None:
    """Give a Pod the topology labels of its node, as admission does on create and binding."""
    node = store.of(NODES).get("", obj["spec"]["nodeName"])
    labels = labels_of(node.obj) if node is not None else {}
    found = {key: labels[key] for key in TOPOLOGY_LABELS if key in labels}
    if found:
        obj["metadata"].setdefault("labels", {}).update(found)


def _sync_pod_ips(status: Obj) -> None:
    """Keep podIP and podIPs[0] equal; where they differ podIP wins, as in the real conversion."""
    pod_ip, pod_ips = status.get("podIP"), status.get("podIPs")
    if pod_ip and (not pod_ips or pod_ips[0].get("ip") != pod_ip):
        status["podIPs"] = [{"ip": pod_ip}]
    elif pod_ips and not pod_ip and pod_ips[0].get("ip"):
        status["podIP"] = pod_ips[0]["ip"]


def _fixed(spec: Obj) -> Obj:
    """Return the part of a Pod's spec that no update may change."""
    copy = thaw(spec)
    for name in ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds"):
        copy.pop(name, None)
    for container in [*copy.get("containers", ()), *copy.get("initContainers", ())]:
        container.pop("image", None)
    return copy


def _admit(spec: Obj) -> None:
    name = spec.setdefault("serviceAccountName", spec.get("serviceAccount") or "default")
    spec["serviceAccount"] = name
    spec.setdefault("priority", 0)
    spec.setdefault("enableServiceLinks", True)
    spec.setdefault("preemptionPolicy", "PreemptLowerPriority")
    tolerations: list[Obj] = spec.setdefault("tolerations", [])
    for key in _NOT_READY:
        if any(item.get("key") in (key, None) for item in tolerations):
            continue
        tolerations.append(
            {"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
        )


def qos_class(spec: Obj) -> str:
    """Return the quality-of-service class."""
    containers = [item.get("resources") or {} for item in spec.get("containers") or ()]
    if not any(item.get("requests") or item.get("limits") for item in containers):
        return "BestEffort"
    for item in containers:
        limits = item.get("limits") or {}
        if not {"cpu", "memory"} <= limits.keys() or (item.get("requests") or limits) != limits:
            return "Burstable"
    return "Guaranteed"


def default_pod_spec(spec: Obj) -> None:
    """Set the defaults a Pod and a Pod template share."""
    for container in [*spec.get("containers", ()), *spec.get("initContainers", ())]:
        _default_container(container, host_network=bool(spec.get("hostNetwork")))
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("dnsPolicy", "ClusterFirst")
    spec.setdefault("securityContext", {})
    spec.setdefault("schedulerName", "default-scheduler")
    if "serviceAccountName" in spec:
        spec["serviceAccount"] = spec["serviceAccountName"]
    for volume in spec.get("volumes") or ():
        for source in ("configMap", "secret", "projected", "downwardAPI"):
            if isinstance(volume.get(source), dict):
                volume[source].setdefault("defaultMode", 0o644)


def _default_container(container: Obj, *, host_network: bool) -> None:
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    image = container.get("image", "")
    tag = image.rpartition("/")[2].partition(":")[2]
    latest = "@" not in image and tag in ("", "latest")
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
    for port in container.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if host_network and "containerPort" in port:
            port.setdefault("hostPort", port["containerPort"])
    for name in ("livenessProbe", "readinessProbe", "startupProbe"):
        if isinstance(container.get(name), dict):
            _default_probe(container[name])


def _default_probe(probe: dict[str, Any]) -> None:
    defaults = {"timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1,
                "failureThreshold": 3}  # fmt: skip
    for key, value in defaults.items():
        probe.setdefault(key, value)
    if isinstance(probe.get("httpGet"), dict):
        probe["httpGet"].setdefault("path", "/")
        probe["httpGet"].setdefault("scheme", "HTTP")


def check_pod_spec(field: str, spec: Obj) -> list[Cause]:
    """Check the containers and the policies of a Pod or a template."""
    containers = spec.get("containers") or []
    found: list[Cause] = [] if containers else [required(f"{field}.containers")]
    names: set[str] = set()
    for index, container in enumerate(containers):
        path, name = f"{field}.containers[{index}]", container.get("name", "")
        found += check_label_name(f"{path}.name", name) if name else [required(f"{path}.name")]
        if name in names:
            found.append(duplicate(f"{path}.name", name))
        names.add(name)
        if not container.get("image"):
            found.append(required(f"{path}.image"))
        for at, port in enumerate(container.get("ports") or ()):
            found += _check_container_port(f"{path}.ports[{at}]", port)
    policies = ("Always", "Never", "OnFailure")
    return found + check_one_of(f"{field}.restartPolicy", spec.get("restartPolicy"), policies)


def _check_container_port(path: str, port: Obj) -> list[Cause]:
    found: list[Cause] = []
    if port.get("name"):
        found += check_port_or_name(f"{path}.name", port["name"])
    if not port.get("containerPort"):
        found.append(required(f"{path}.containerPort"))
    else:
        found += check_port(f"{path}.containerPort", port["containerPort"])
    if port.get("hostPort"):
        found += check_port(f"{path}.hostPort", port["hostPort"])
    return found + check_protocol(f"{path}.protocol", port["protocol"])
