"""The lab's Kubernetes API, one of three: embedded, a real control plane, or somebody's cluster."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

import httpx
import yaml

from dunlin_lab import assets, plan
from dunlin_lab.api import KubeconfigError, client
from dunlin_lab.catalogue import Spec, split_process
from dunlin_lab.kubelet_nodes import LAB_LABEL
from dunlin_lab.starting import (
    READY_TIMEOUT_S,
    UpError,
    check_alive,
    deadline,
    log_tail,
    start,
    wait_ready,
)

CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
CLUSTER_POLICIES = "/apis/policy.networking.k8s.io/v1alpha2/clusternetworkpolicies"
SCHEDULER_LEASE = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases/kube-scheduler"
SERVICE_CIDRS = "/apis/networking.k8s.io/v1/servicecidrs"

_NAME = "kubernetes"
"""Of the ServiceCIDR that the API server was started with."""
_CRD_FILE = Path(__file__).resolve().parents[2] / "k8s" / "crds" / "clusternetworkpolicies.yaml"


def start_api(site: plan.Site, options: plan.Options) -> tuple[list[Spec], list[Spec]]:
    """
    Start the API server. What is returned second is for `start_rest`.

    Raises:
        AssetsError, ProcessError: an executable is missing.
    """
    first: list[Spec] = []
    later: list[Spec] = []
    if options.kubeconfig is None and options.kube_assets is None:
        first = [plan.apiserver_spec(site)]
    elif options.kubeconfig is None and options.kube_assets is not None:
        first, later = assets.specs(site, options.kube_assets)
    for spec in first:
        start(site.paths, spec)
    return first, later


def wait_api(site: plan.Site, processes: list[str]) -> None:
    """
    Wait until the Kubernetes API is ready for the user of the kubeconfig.

    Raises:
        UpError: one of the processes ended, or it is not in time; with the end of a log.
    """
    problem = "no kubeconfig"
    with deadline(READY_TIMEOUT_S) as more:
        while more():
            for process in processes:
                check_alive(site.paths, process)
            try:
                with client(site.kubeconfig) as api:
                    answer = api.get("/readyz")
                    if answer.is_success:
                        return
                    problem = f"{answer.status_code}: {answer.text.strip()[-300:]}"
                if answer.status_code in (401, 403):
                    break
            except (httpx.HTTPError, KubeconfigError) as error:
                problem = str(error)
    server = next((name for name in processes if name.startswith("apiserver@")), "")
    tail = f"\n{log_tail(site.paths, server)}" if server else ""
    raise UpError(f"the Kubernetes API is not ready: {problem}{tail}")


def start_rest(site: plan.Site, options: plan.Options, later: list[Spec]) -> None:
    """
    What needs the API: kube-controller-manager, and the kinds that Dunlin reads beyond the API's.

    Raises:
        UpError: the API refuses, or somebody's cluster has nodes of our names.
    """
    for spec in later:
        start(site.paths, spec)
    if options.kubeconfig is not None:
        _refuse_foreign_nodes(site)
    elif later:
        _install_crd(site)


def wait_rest(site: plan.Site, extra: dict[str, str]) -> None:
    """
    Wait until what `start_rest` began is ready; `extra` has it as `health:PROCESS`.

    Raises:
        UpError: it is not in time.
    """
    probes = {key: url for key, url in extra.items() if key.startswith("health:")}
    if not probes:
        return
    context = ssl.create_default_context(cafile=str(assets.authority(site)))
    for key, url in probes.items():
        spec = Spec(*split_process(key.removeprefix("health:")), (), health=url)
        wait_ready(site.paths, spec, verify=context)
    with deadline(READY_TIMEOUT_S) as more, client(site.kubeconfig) as api:
        while more():
            answer = api.get(CLUSTER_POLICIES)
            if answer.is_success:
                return
    raise UpError(f"ClusterNetworkPolicies are not served: {answer.status_code} {answer.text}")


def needs_binder(site: plan.Site, options: plan.Options) -> bool:
    """Whether Pods would wait for ever without one: the embedded API binds, a scheduler does."""
    if options.kubeconfig is None:
        return options.kube_assets is not None
    with client(site.kubeconfig) as api:
        return not api.get(SCHEDULER_LEASE).is_success


def sort(options: plan.Options) -> str:
    """`embedded`, `assets` or `kubeconfig`."""
    if options.kubeconfig is not None:
        return "kubeconfig"
    return "embedded" if options.kube_assets is None else "assets"


def service_cidrs(options: plan.Options) -> plan.Cidrs:
    """
    The Service addresses: the lab's own choice, or what somebody's cluster says.

    Raises:
        UpError: the cluster does not answer.
    """
    if options.kubeconfig is None:
        return plan.SERVICE_CIDRS
    try:
        with client(options.kubeconfig) as api:
            answer = api.get(SERVICE_CIDRS)
            items = answer.json().get("items") or [] if answer.is_success else []
    except (httpx.HTTPError, KubeconfigError, ValueError) as error:
        raise UpError(f"--kubeconfig {options.kubeconfig}: {error}") from error
    # More may be added while the cluster runs (ServiceCIDR): the watcher sees them.
    for item in items:
        if item["metadata"]["name"] == _NAME:
            return plan.parse_cidrs("ServiceCIDR", ",".join(item["spec"]["cidrs"]))
    return plan.SERVICE_CIDRS


def _install_crd(site: plan.Site) -> None:
    """k8s/crds, unless the cluster has it."""
    manifest: dict[str, Any] = yaml.safe_load(_CRD_FILE.read_text())
    try:
        with client(site.kubeconfig) as api:
            answer = api.post(CRDS, json=manifest)
    except httpx.HTTPError as error:
        raise UpError(f"{manifest['metadata']['name']}: {error}") from error
    if answer.status_code not in (201, 409):
        raise UpError(f"{manifest['metadata']['name']}: {answer.status_code} {answer.text}")


def _refuse_foreign_nodes(site: plan.Site) -> None:
    """Somebody's cluster may have a node `n1`: it is not ours to change."""
    with client(site.kubeconfig) as api:
        for node in site.nodes:
            answer = api.get(f"/api/v1/nodes/{node.name}")
            if answer.status_code == httpx.codes.NOT_FOUND:
                continue
            if not answer.is_success:
                raise UpError(f"node {node.name}: {answer.status_code} {answer.text.strip()}")
            owner = (answer.json()["metadata"].get("labels") or {}).get(LAB_LABEL)
            if owner != site.paths.name:
                raise UpError(f"the cluster has a node {node.name} that is not of this lab")
