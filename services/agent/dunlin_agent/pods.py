"""
What CNI's commands do: an address, a link, a port, and the wait until its flows are in force.

OVSDB is the record: what it does not hold is not attached. A failed ADD leaves nothing behind but,
if ipam is silent, an address, which ipam takes back when it learns that nobody stands on it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_interface, ip_network
from typing import Final

import msgspec
import structlog

from dunlin.events.rpc import Allocated, AllocateRequest
from dunlin.model.addresses import GATEWAY_MAC, derived_mac
from dunlin_agent.adapters.ipam import Ipam, IpamError
from dunlin_agent.adapters.links import LinkError, PodLink, PodLinks, host_ifname
from dunlin_agent.adapters.netns import NamespaceGoneError
from dunlin_agent.adapters.ovs_spec import INTEGRATION_BRIDGE, PodPort
from dunlin_agent.adapters.ovsdb import Ovs, PortError
from dunlin_agent.adapters.ovsdb_session import OvsdbError
from dunlin_agent.cni import (
    CniError,
    CniErrorCode,
    CniRequest,
    Interface,
    IpConfig,
    Result,
    Route,
)
from dunlin_agent.core import PortsObserved, attachment_of
from dunlin_agent.facts import Facts, NotInForceError
from dunlin_agent.metrics import AgentMetrics

RELEASE_SECONDS: Final = 2.0

log = structlog.get_logger(__name__)


class _PrevIp(msgspec.Struct, frozen=True):
    address: str


class _PrevResult(msgspec.Struct, frozen=True):
    ips: tuple[_PrevIp, ...] = ()


class Pods:
    """The PodNetwork of this node."""

    def __init__(
        self,
        facts: Facts,
        ovs: Ovs,
        links: PodLinks,
        ipam: Ipam,
        metrics: AgentMetrics,
        *,
        add_timeout_s: float,
        not_ready: Callable[[], str | None],
    ) -> None:
        """`not_ready`: why no Pod can be attached now, or None."""
        self._facts = facts
        self._ovs = ovs
        self._links = links
        self._ipam = ipam
        self._metrics = metrics
        self._add_timeout_s = add_timeout_s
        self._not_ready = not_ready
        self._adding: set[str] = set()

    async def add(self, request: CniRequest) -> Result:
        """Attach, and return when the Pod's flows are in force."""
        if request.pod is None:
            raise CniError(
                CniErrorCode.INVALID_ENVIRONMENT,
                "no Pod in CNI_ARGS",
                "K8S_POD_NAMESPACE and K8S_POD_NAME are needed",
            )
        self._require_ready()
        name = host_ifname(request.container_id, request.ifname)
        self._adding.add(name)
        try:
            with _as_cni_errors(request):
                ports = await self._ovs.pod_ports()
                port = await self._standing(request, _named(ports, name))
                if port is None:
                    port = await self._attach(request, name, ports)
        finally:
            self._adding.discard(name)
        return self._result(request, port)

    async def delete(self, request: CniRequest) -> None:
        """Detach; what is not there is not missed."""
        with _as_cni_errors(request):
            name = host_ifname(request.container_id, request.ifname)
            await self._detach(name, request.container_id, request.ifname)

    async def check(self, request: CniRequest) -> None:
        """Compare the record, the link, OVS's port and what the runtime remembers."""
        name = host_ifname(request.container_id, request.ifname)
        with _as_cni_errors(request):
            port = _named(await self._ovs.pod_ports(), name)
            if port is None:
                raise CniError(
                    CniErrorCode.UNKNOWN_CONTAINER, "not attached", f"{request.who}: no port {name}"
                )
            wrong = [str(item) for item in await self._links.check(self._link(request, port))]
        if port.ofport == 0:
            wrong.append(f"OVS port {name}: {port.error or 'no OpenFlow port'}")
        wrong += _differences_from_previous(request, port)
        if wrong:
            details = f"{request.who}: " + "; ".join(wrong)
            raise CniError(
                CniErrorCode.CHECK_FAILED, "the interface is not as ADD left it", details
            )

    async def gc(self, request: CniRequest) -> None:
        """Detach every port whose attachment the runtime does not list."""
        valid = {
            host_ifname(item.container_id, item.ifname)
            for item in request.conf.valid_attachments or ()
        }
        with _as_cni_errors(request):
            for port in await self._ovs.pod_ports():
                if port.port_name not in valid | self._adding:
                    log.info("collected", pod=f"{port.pod_namespace}/{port.pod_name}")
                    await self._detach(port.port_name, port.container_id, port.ifname)
            for name in await self._links.list():
                if name not in valid | self._adding:
                    await self._links.delete(name)

    async def status(self, request: CniRequest) -> None:
        """Whether an ADD could succeed now."""
        assert request.command == "STATUS"
        self._require_ready()

    # --- steps ------------------------------------------------------------------------------------

    def _require_ready(self) -> None:
        reason = self._not_ready()
        if reason is not None:
            raise CniError(CniErrorCode.NOT_AVAILABLE, "Dunlin is not ready on this node", reason)

    async def _standing(self, request: CniRequest, port: PodPort | None) -> PodPort | None:
        """The port of an earlier ADD of the same interface, if it is still whole, and in force."""
        if port is None or port.ofport == 0:
            return None
        if await self._links.check(self._link(request, port)):
            return None
        await self._in_force(port)
        return port

    async def _attach(self, request: CniRequest, name: str, others: tuple[PodPort, ...]) -> PodPort:
        with self._timed("address"):
            wanted = self._allocation(request, others)
            given = await self._ipam.allocate(wanted, self._add_timeout_s)
        port = _port_of(request, name, given)
        try:
            with self._timed("link"):
                await self._links.create(self._link(request, port))
            with self._timed("port"):
                ofport = await self._ovs.add_pod_port(INTEGRATION_BRIDGE, port)
            port = msgspec.structs.replace(port, ofport=ofport)
            await self.observe()
            with self._timed("in_force"):
                await self._in_force(port)
        except BaseException:
            with contextlib.suppress(OvsdbError, LinkError, OSError):
                await self._detach(name, request.container_id, request.ifname)
            raise
        return port

    def _allocation(self, request: CniRequest, others: tuple[PodPort, ...]) -> AllocateRequest:
        assert request.pod is not None
        namespace, pod = request.pod
        own = (request.container_id, request.ifname)
        return AllocateRequest(
            node=self._facts.node,
            container_id=request.container_id,
            ifname=request.ifname,
            pod_namespace=namespace,
            pod_name=pod,
            pod_uid=request.pod_uid or "",
            in_use=tuple(
                ip for port in others if (port.container_id, port.ifname) != own for ip in port.ips
            ),
        )

    async def _in_force(self, port: PodPort) -> None:
        fact = attachment_of(self._facts.node, port)
        assert fact is not None
        await self._facts.in_force(fact, self._add_timeout_s)

    async def _detach(self, name: str, container_id: str, ifname: str) -> None:
        """Port, link, record, address; ipam's silence is no reason to fail."""
        await self._ovs.delete_ports(INTEGRATION_BRIDGE, name)
        await self._links.delete(name)
        await self.observe()
        try:
            await self._ipam.release(container_id, ifname, RELEASE_SECONDS)
        except IpamError as error:
            log.warning("address not released yet", container=container_id, error=str(error))

    async def observe(self) -> None:
        """Take in what OVSDB holds now."""
        self._facts.emit(PortsObserved(await self._ovs.pod_ports()))

    async def watch(self) -> None:
        """Take in every change of the Pod ports that OVSDB reports, for ever."""
        while True:
            try:
                await self.observe()
                await self._ovs.pod_ports_changed(self._facts.state.ports or ())
            except OvsdbError as error:
                log.warning("Pod ports unknown", error=str(error))

    def _link(self, request: CniRequest, port: PodPort) -> PodLink:
        assert request.netns is not None
        switch = self._facts.state.switch
        assert switch is not None, "ready means that the node is set up"
        return PodLink(
            netns=request.netns,
            ifname=request.ifname,
            host_ifname=port.port_name,
            mac=port.mac,
            ips=port.ips,
            gateways=port.gateways,
            gateway_mac=GATEWAY_MAC,
            mtu_bytes=port.mtu_bytes or switch.mtu,
            checksum_offload=switch.userspace_tso,
        )

    def _result(self, request: CniRequest, port: PodPort) -> Result:
        link = self._link(request, port)
        return Result(
            interfaces=(
                Interface(port.port_name, derived_mac("host", port.port_name)),
                Interface(request.ifname, port.mac, str(request.netns), link.mtu_bytes),
            ),
            ips=tuple(
                IpConfig(ip_interface(ip), gateway, 1)
                for ip, gateway in zip(port.ips, port.gateways, strict=True)
            ),
            routes=tuple(
                Route(ip_network("0.0.0.0/0" if hop.version == 4 else "::/0"), hop, link.mtu_bytes)
                for hop in port.gateways
            ),
        )

    @contextlib.contextmanager
    def _timed(self, step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self._metrics.add_seconds.labels(step).observe(time.monotonic() - started)


def _named(ports: tuple[PodPort, ...], name: str) -> PodPort | None:
    return next((port for port in ports if port.port_name == name), None)


def _port_of(request: CniRequest, name: str, given: Allocated) -> PodPort:
    assert request.pod is not None
    namespace, pod = request.pod
    return PodPort(
        port_name=name,
        pod_namespace=namespace,
        pod_name=pod,
        pod_uid=request.pod_uid or "",
        container_id=request.container_id,
        ifname=request.ifname,
        netns=str(request.netns),
        ips=given.ips,
        gateways=given.gateways,
        mac=derived_mac("pod", *sorted(map(str, given.ips))),
    )


def _differences_from_previous(request: CniRequest, port: PodPort) -> list[str]:
    """What the runtime says that ADD gave, against the record."""
    raw = request.conf.prev_result
    if bytes(raw) in (b"", b"null"):
        return []
    try:
        previous = msgspec.json.decode(raw, type=_PrevResult)
        ips = {ip_interface(item.address).ip for item in previous.ips}
    except (msgspec.MsgspecError, ValueError) as error:
        raise CniError(CniErrorCode.INVALID_CONFIG, "invalid prevResult", str(error)) from error
    if ips == set(port.ips):
        return []
    expected, actual = ", ".join(map(str, sorted(ips, key=str))), ", ".join(map(str, port.ips))
    return [f"addresses: prevResult has {expected}, the port {actual}"]


@contextlib.contextmanager
def _as_cni_errors(request: CniRequest) -> Iterator[None]:
    """The failures that have a code of their own."""
    try:
        yield
    except IpamError as error:
        code = CniErrorCode.TRY_AGAIN_LATER if error.retry else CniErrorCode.INTERNAL
        raise CniError(code, "no address", f"{request.who}: {error}") from error
    except NotInForceError as error:
        raise CniError(
            CniErrorCode.TRY_AGAIN_LATER,
            "the Pod's flows are not in force",
            f"{request.who}: {error}",
        ) from error
    except NamespaceGoneError as error:
        raise CniError(
            CniErrorCode.INVALID_ENVIRONMENT, "invalid CNI_NETNS", f"{request.who}: {error}"
        ) from error
    except (LinkError, PortError, OvsdbError) as error:
        raise CniError(
            CniErrorCode.TRY_AGAIN_LATER, "cannot attach the Pod", f"{request.who}: {error}"
        ) from error
