"""`dunlin lab up`: from nothing to a cluster whose Pods talk, with progress for who waits."""

from __future__ import annotations

import os
import secrets
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from dunlin.bus.permissions import permissions
from dunlin.model.addresses import derived_dpid
from dunlin.model.ids import format_dpid
from dunlin_lab import assets, identities, kube, ovs, plan
from dunlin_lab.catalogue import (
    KUBERNETES,
    Spec,
    free_port,
    python,
    split_process,
)
from dunlin_lab.kubeconfig import access, flatten
from dunlin_lab.paths import LabPaths
from dunlin_lab.runner import BIND_ENV, WITHOUT_KUBELET
from dunlin_lab.starting import Report, UpError, deadline, log_tail, start, wait_ready
from dunlin_lab.state import (
    LabState,
    NodeState,
    NoLabError,
    load_state,
    locked,
    save_state,
    write_atomically,
)
from dunlin_lab.underlay import AddressPlan, Underlay, host_networks


class LabExistsError(UpError):
    """There is a lab of that name already."""


def up(paths: LabPaths, options: plan.Options, report: Report) -> LabState:
    """
    Build the lab and start everything; returns when every service is ready.

    Raises:
        UpError, OptionError, OvsError, UnderlayError, ProcessError: what was made is left for
            `down`.
    """
    with locked(paths):
        _refuse_second(paths)
        report("network namespaces and underlay")
        tso, datapath = _datapath(paths, options)
        addresses = AddressPlan.of(paths.name, host_networks())
        outside, nodes = Underlay(paths, addresses, userspace_tso=tso).build(options.nodes)
        nodes = tuple(_with_dpid(node) for node in nodes)
        site = _site(paths, str(addresses.host.ip), nodes, options, userspace_tso=tso)
        state = LabState(
            name=paths.name,
            mgmt_ip=site.mgmt_ip,
            outside=outside,
            nodes=nodes,
            datapath=datapath.kind,
            datapath_reason=datapath.reason,
            userspace_tso=tso,
            kubeconfig=str(site.kubeconfig),
            nats=site.nats_url,
            extra={
                "encapsulation": options.encapsulation,
                "token_file": str(site.token_file),
                "kubernetes": kube.sort(options),
                WITHOUT_KUBELET: ",".join(options.without_kubelet),
            },
        )
        save_state(paths, state)
        with ThreadPoolExecutor(max_workers=4) as pool:
            switches = [pool.submit(ovs.NodeOvs(paths, n.name, datapath).start) for n in nodes]
            report("NATS and the Kubernetes API")
            urls = _start_services(site, options, report)
            report("Open vSwitch")
            for switch in switches:
                switch.result()
        state = msgspec.structs.replace(state, extra={**state.extra, **urls})
        _start_nodes(site, options, state, report)
        return load_state(paths)


def _refuse_second(paths: LabPaths) -> None:
    try:
        load_state(paths)
    except NoLabError:
        if not paths.run_dir.exists():
            return
        raise LabExistsError(
            f"lab {paths.name}: the rest of one is in {paths.run_dir}; remove it: dunlin lab down"
        ) from None
    raise LabExistsError(f"lab {paths.name} is up already; `dunlin lab down` removes it")


def _datapath(paths: LabPaths, options: plan.Options) -> tuple[bool, ovs.Datapath]:
    chosen = ovs.choose_datapath(options.datapath, paths, max(1, options.nodes))
    tso = plan.userspace_tso(options.encapsulation, chosen.version)
    return tso, ovs.Datapath(chosen.kind, chosen.binary, chosen.version, chosen.reason, tso)


def _with_dpid(node: NodeState) -> NodeState:
    return msgspec.structs.replace(node, dpid=format_dpid(derived_dpid(node.name)))


def _site(
    paths: LabPaths,
    mgmt_ip: str,
    nodes: tuple[NodeState, ...],
    options: plan.Options,
    *,
    userspace_tso: bool,
) -> plan.Site:
    token_file = paths.run_dir / "token"
    write_atomically(token_file, secrets.token_hex(16).encode())
    kubeconfig = paths.kubeconfig
    if options.kubeconfig is not None:
        write_atomically(kubeconfig, flatten(options.kubeconfig).encode())
    password = secrets.token_hex(16)
    ports = [free_port(mgmt_ip) for _ in range(options.count("nats"))]
    nats_url = ",".join(f"nats://{plan.NATS_ADMIN}:{password}@{mgmt_ip}:{port}" for port in ports)
    return plan.Site(
        paths,
        mgmt_ip,
        nodes,
        kubeconfig,
        nats_url,
        token_file,
        userspace_tso,
        free_port,
        options.pod_cidrs,
        kube.service_cidrs(options),
    )


def _nats_specs(site: plan.Site, peers: list[plan.NatsPeer]) -> list[Spec]:
    """Each nats-server; its configuration and the services' seeds are written."""
    run_dir = site.paths.run_dir
    included = plan.nats_files(site, identities.make(site.seeds, permissions()))
    for name, text in included.items():
        write_atomically(run_dir / name, text.encode())
    specs = []
    for peer in peers:
        config = run_dir / f"nats-{peer.replica}.conf"
        write_atomically(config, plan.nats_config(site, peer, peers).encode())
        specs.append(plan.nats_spec(plan.nats_server(), peer.replica, config))
    return specs


def _start_services(site: plan.Site, options: plan.Options, report: Report) -> dict[str, str]:
    """NATS, the Kubernetes API, then Dunlin's own; URL of each process that has one."""
    peers = plan.nats_peers(site)
    for spec in _nats_specs(site, peers):
        start(site.paths, spec)
    api, later = kube.start_api(site, options)
    for peer in peers:
        _wait_tcp(site, peer)
    kube.wait_api(site, [spec.process for spec in api])
    kube.start_rest(site, options, later)
    services = plan.control_plane_specs(site, options)
    report("watcher, ipam, planner, flowctl, metrics")
    for spec in services:
        start(site.paths, spec)
    urls = {f"url:{spec.process}": spec.url for spec in (*api, *later, *services) if spec.url}
    urls |= {f"health:{spec.process}": spec.health for spec in later}
    urls["openflow"] = plan.openflow_targets(services)
    return urls


def _start_nodes(site: plan.Site, options: plan.Options, state: LabState, report: Report) -> None:
    """Agents, then the node runner; the state is saved before, so that they find it."""
    controllers = state.extra["openflow"]
    agents = [plan.agent_spec(site, node, options, controllers) for node in site.nodes]
    urls = {f"url:{spec.process}": spec.url for spec in agents}
    save_state(site.paths, msgspec.structs.replace(state, extra={**state.extra, **urls}))
    report("the agent of each node")
    for spec in agents:
        start(site.paths, spec)
    if site.nodes:
        start(site.paths, runner_spec(site, bind=kube.needs_binder(site, options)))
    report("every service is ready")
    _wait_services(site, {**state.extra, **urls})


def _wait_services(site: plan.Site, extra: dict[str, str]) -> None:
    """The control plane first: agents wait for it, and an early death shows at once."""
    specs = [
        Spec(*split_process(key.removeprefix("url:")), (), url=url)
        for key, url in extra.items()
        if key.startswith("url:")
    ]
    kube.wait_rest(site, extra)
    # An agent is ready when its Node is there: without our kubelet that is up to somebody else.
    foreign = {f"agent@{name}" for name in extra[WITHOUT_KUBELET].split(",")}
    for spec in sorted(specs, key=lambda spec: spec.service == "agent"):
        if spec.service not in KUBERNETES and spec.process not in foreign:
            wait_ready(site.paths, spec)


def runner_spec(site: plan.Site, *, bind: bool) -> Spec:
    """The node runner, which plays every kubelet; with `bind` also the scheduler."""
    env = {BIND_ENV: "1"} if bind else {}
    return Spec("runner", "0", python("dunlin_lab.runner", site.paths.name), env)


def _wait_tcp(site: plan.Site, peer: plan.NatsPeer) -> None:
    """NATS greets everybody who connects, before any authentication."""
    with deadline(20.0) as more:
        while more():
            try:
                with socket.create_connection((peer.host, peer.port), 1.0) as link:
                    if link.recv(5).startswith(b"INFO"):
                        return
            except OSError:
                continue
    raise UpError(f"nats-server does not answer:\n{log_tail(site.paths, f'nats@{peer.replica}')}")


def check(options: plan.Options) -> None:
    """
    What can be seen to be missing before anything is built.

    Raises:
        UpError, AssetsError, KubeconfigError: naming it.
    """
    cni_binary()
    if options.kubeconfig is not None:
        access(options.kubeconfig)
    elif options.kube_assets is not None:
        assets.check(options.kube_assets)


def cni_binary() -> Path:
    """
    The CNI executable.

    Raises:
        UpError: it has not been built.
    """
    candidates = [Path(os.environ.get("DUNLIN_CNI", "")), repository() / "build/bin/dunlin-cni"]
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise UpError("the CNI executable has not been built: run `make build`")


def repository() -> Path:
    """The checkout that this package is in."""
    return Path(__file__).resolve().parents[2]
