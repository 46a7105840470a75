"""
What the agent wants in OVSDB, as values: bridges, ports, controllers. Pure.

`node_bridges` is Dunlin's node (ARCHITECTURE, section 4): br-int holds Pods and is programmed by
flowctl; br-ext holds the uplink and, on its LOCAL port, the node's own address; two patch ports
join them.
"""

from typing import Final, Literal

import msgspec

from dunlin.model.addresses import IPAddress, MacAddress, derived_dpid
from dunlin.model.ids import OfPort, format_dpid

INTEGRATION_BRIDGE: Final = "br-int"
EXTERNAL_BRIDGE: Final = "br-ext"
GATEWAY_PORT: Final = "dunlin-gw0"
TUNNEL_PORT: Final = "dunlin-tun"
PATCH_TO_EXTERNAL: Final = "dunlin-ext"  # on br-int
PATCH_TO_INTEGRATION: Final = "dunlin-int"  # on br-ext

# The node's own ports have the same numbers on every node and after every restart.
GATEWAY_OFPORT: Final = OfPort(1)
UPLINK_OFPORT: Final = OfPort(2)
TUNNEL_OFPORT: Final = OfPort(3)

# Outer IPv4 20, UDP 8, Geneve 8, inner Ethernet 14; the same for VXLAN.
TUNNEL_OVERHEAD_BYTES: Final = 50


class InterfaceSpec(msgspec.Struct, frozen=True, kw_only=True):
    """An Interface row and its Port row of the same name; "" is a system device."""

    name: str
    type: Literal["", "internal", "patch", "geneve", "vxlan", "dpdk", "dpdkvhostuserclient"] = ""
    options: dict[str, str] = {}
    external_ids: dict[str, str] = {}
    ofport_request: OfPort | None = None
    mtu_request: int | None = None
    mac: MacAddress | None = None


class ControllerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A Controller row; milliseconds, packets a second, packets."""

    target: str
    inactivity_probe_ms: int = 5000
    max_backoff_ms: int = 1000
    rate_limit_pps: int = 1000
    burst_limit_packets: int = 250


class SslSpec(msgspec.Struct, frozen=True, kw_only=True):
    """The row of table SSL: PEM files, by the paths that ovs-vswitchd sees. It notices new ones."""

    private_key: str
    certificate: str
    ca_cert: str


class BridgeSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A Bridge row, the ports it must have and those it must not; others are left alone."""

    name: str
    interfaces: tuple[InterfaceSpec, ...] = ()
    datapath_type: str = "netdev"
    fail_mode: Literal["secure", "standalone"] = "secure"
    protocols: tuple[str, ...] = ()
    other_config: dict[str, str] = {}
    controllers: tuple[ControllerSpec, ...] = ()
    absent: tuple[str, ...] = ()


class PodPort(msgspec.Struct, frozen=True, kw_only=True):
    """
    A Pod's port of br-int: what the node durably knows of an attachment.

    `gateways` in the order of `ips`; `mtu_bytes` as given at ADD. `ofport` and `error` are OVS's
    answers: 0 is not yet or not at all, and then `error` may say why.
    """

    port_name: str
    pod_namespace: str
    pod_name: str
    pod_uid: str = ""
    container_id: str
    ifname: str = "eth0"
    netns: str = ""
    ips: tuple[IPAddress, ...] = ()
    gateways: tuple[IPAddress, ...] = ()
    mac: MacAddress
    mtu_bytes: int = 0
    ofport: OfPort = OfPort(0)
    error: str = ""


class InterfaceState(msgspec.Struct, frozen=True, kw_only=True):
    """What OVS says of an interface; `ofport` 0 is none."""

    name: str
    type: str
    ofport: OfPort
    error: str
    mac_in_use: str


class SwitchState(msgspec.Struct, frozen=True, kw_only=True):
    """What OVS says of itself; not its version, which is what ovs-ctl once wrote there."""

    dpdk_initialized: bool
    dpdk_version: str
    userspace_tso: bool
    iface_types: frozenset[str]


def pod_mtu_bytes(uplink_mtu_bytes: int, *, encapsulated: bool, ipv6_underlay: bool = False) -> int:
    """What is left for Pods on an uplink; an outer IPv6 header is 20 bytes longer."""
    overhead = TUNNEL_OVERHEAD_BYTES + (20 if ipv6_underlay else 0)
    return uplink_mtu_bytes - (overhead if encapsulated else 0)


def node_bridges(
    node: str,
    *,
    controllers: tuple[ControllerSpec, ...],
    uplink: str | None,
    uplink_mac: MacAddress | None,
    gateway_mac: MacAddress,
    pod_mtu: int,
    uplink_mtu: int = 1500,
    tunnel: Literal["", "geneve", "vxlan"] = "",
) -> tuple[BridgeSpec, ...]:
    """
    Both bridges of a node, or br-int alone where `uplink` is None.

    Args:
        node: its name gives the dpid.
        controllers: of br-int.
        uplink: a device of the node.
        uplink_mac: of that device; br-ext's LOCAL port takes it, and neighbours notice nothing.
        gateway_mac: of the node's own interface dunlin-gw0.
        pod_mtu: bytes, of dunlin-gw0.
        uplink_mtu: bytes, of br-ext's LOCAL port.
        tunnel: the type of dunlin-tun; "": none, and it is removed.
    """
    gateway = InterfaceSpec(
        name=GATEWAY_PORT,
        type="internal",
        ofport_request=GATEWAY_OFPORT,
        mtu_request=pod_mtu,
        mac=gateway_mac,
    )
    interfaces = [gateway]
    if tunnel:
        options = {"remote_ip": "flow", "key": "flow"}
        interfaces.append(
            InterfaceSpec(
                name=TUNNEL_PORT, type=tunnel, options=options, ofport_request=TUNNEL_OFPORT
            )
        )
    if uplink is not None:
        interfaces.append(_patch(PATCH_TO_EXTERNAL, PATCH_TO_INTEGRATION, UPLINK_OFPORT))
    integration = BridgeSpec(
        name=INTEGRATION_BRIDGE,
        interfaces=tuple(interfaces),
        fail_mode="secure",
        protocols=("OpenFlow13", "OpenFlow15"),
        other_config={
            "datapath-id": format_dpid(derived_dpid(node)),
            "disable-in-band": "true",
        },
        controllers=controllers,
        absent=() if tunnel else (TUNNEL_PORT,),
    )
    if uplink is None:
        return (integration,)
    assert uplink_mac is not None
    return (integration, _external(uplink, uplink_mac, uplink_mtu))


def _external(uplink: str, uplink_mac: MacAddress, uplink_mtu: int) -> BridgeSpec:
    """An ordinary learning switch between the uplink, the node itself and br-int."""
    local = InterfaceSpec(name=EXTERNAL_BRIDGE, type="internal", mtu_request=uplink_mtu)
    return BridgeSpec(
        name=EXTERNAL_BRIDGE,
        interfaces=(
            local,
            InterfaceSpec(name=uplink),
            _patch(PATCH_TO_INTEGRATION, PATCH_TO_EXTERNAL, None),
        ),
        fail_mode="standalone",
        protocols=("OpenFlow13", "OpenFlow15"),
        other_config={"hwaddr": uplink_mac, "disable-in-band": "true"},
    )


def _patch(name: str, peer: str, ofport: OfPort | None) -> InterfaceSpec:
    return InterfaceSpec(name=name, type="patch", options={"peer": peer}, ofport_request=ofport)
