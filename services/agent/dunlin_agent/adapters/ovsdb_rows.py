"""
Rows of OVSDB: the pure half of `ovsdb`, which writes what differs and reads what OVS answered.

Runs in the session's thread. Source: ovs-vswitchd.conf.db(5).
"""

from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final
from uuid import UUID

from ovs.db.idl import Transaction

from dunlin.model.addresses import IPAddress, MacAddress
from dunlin.model.ids import OfPort
from dunlin_agent.adapters.ovs_spec import (
    BridgeSpec,
    ControllerSpec,
    InterfaceSpec,
    InterfaceState,
    PodPort,
    SslSpec,
)
from dunlin_agent.adapters.ovsdb_session import OvsdbError, Tables


def first(values: Any, default: Any) -> Any:
    """The value of an optional column, which the IDL gives as a list."""
    return values[0] if values else default


def rows_of(tables: Tables, table: str) -> tuple[Any, ...]:
    """All rows of a table."""
    return tuple(tables[table].rows.values())


def root_of(tables: Tables) -> Any:
    """The one row of Open_vSwitch."""
    for row in rows_of(tables, "Open_vSwitch"):
        return row
    raise OvsdbError("OVSDB has no Open_vSwitch row: was it initialised (ovs-vsctl init)?")


def _set(row: Any, column: str, value: Any) -> None:
    """Write a column only when it differs, so that an unchanged row is no transaction."""
    if getattr(row, column, None) != value:  # a row just inserted has no columns yet
        setattr(row, column, value)


def merge(row: Any, column: str, items: Mapping[str, str]) -> None:
    """Write these keys of a map column; other keys are others'."""
    _set(row, column, {**getattr(row, column, {}), **items})


def _optional(value: Any) -> list[Any]:
    return [] if value is None else [value]


def ensure_bridge(tables: Tables, transaction: Transaction, root: Any, spec: BridgeSpec) -> None:
    """The bridge and its ports as specified; other ports stay."""
    row = tables.named("Bridge", spec.name)
    if row is None:
        row = transaction.insert(tables["Bridge"])
        row.name = spec.name
        row.ports = []
        root.bridges = [*root.bridges, row]
    _set(row, "datapath_type", spec.datapath_type)
    _set(row, "fail_mode", [spec.fail_mode])
    _set(row, "protocols", sorted(spec.protocols))
    merge(row, "other_config", spec.other_config)
    _ensure_controllers(tables, transaction, row, spec.controllers)
    if all(interface.name != spec.name for interface in spec.interfaces):
        local = InterfaceSpec(name=spec.name, type="internal")
        ensure_interface(tables, transaction, row, local)
    for interface in spec.interfaces:
        ensure_interface(tables, transaction, row, interface)
    if any(port.name in spec.absent for port in row.ports):
        row.ports = [port for port in row.ports if port.name not in spec.absent]


def ensure_ssl(tables: Tables, transaction: Transaction, root: Any, spec: SslSpec) -> None:
    """What ovs-vswitchd shows on ssl: connections, and whom it trusts: never a first stranger."""
    if root.ssl:
        row = root.ssl[0]
    else:
        row = transaction.insert(tables["SSL"])
        root.ssl = [row]
    _set(row, "private_key", spec.private_key)
    _set(row, "certificate", spec.certificate)
    _set(row, "ca_cert", spec.ca_cert)
    _set(row, "bootstrap_ca_cert", False)


def _ensure_controllers(
    tables: Tables, transaction: Transaction, bridge: Any, specs: tuple[ControllerSpec, ...]
) -> None:
    """Exactly these controllers; a target that stays keeps its row, and so its connection."""
    present = {row.target: row for row in getattr(bridge, "controller", ())}
    rows = []
    for spec in specs:
        row = present.get(spec.target)
        if row is None:
            row = transaction.insert(tables["Controller"])
            row.target = spec.target
        _set(row, "connection_mode", ["out-of-band"])
        _set(row, "inactivity_probe", [spec.inactivity_probe_ms])
        _set(row, "max_backoff", [spec.max_backoff_ms])
        _set(row, "controller_rate_limit", [spec.rate_limit_pps])
        _set(row, "controller_burst_limit", [spec.burst_limit_packets])
        rows.append(row)
    if set(present) != {spec.target for spec in specs}:
        bridge.controller = rows


def ensure_interface(
    tables: Tables, transaction: Transaction, bridge: Any, spec: InterfaceSpec
) -> None:
    """The interface and its port, on this bridge and on no other."""
    port = tables.named("Port", spec.name)
    if port is None:
        bridge.ports = [*bridge.ports, _insert_port(tables, transaction, spec)]
        return
    _set_interface(port.interfaces[0], spec)
    for other in rows_of(tables, "Bridge"):
        if other.name != bridge.name and port in other.ports:
            other.ports = [row for row in other.ports if row != port]
    if port not in bridge.ports:
        bridge.ports = [*bridge.ports, port]


def add_interface(
    tables: Tables, transaction: Transaction, bridge: Any, spec: InterfaceSpec
) -> None:
    """As `ensure_interface`, but a new port costs the same however many the bridge has."""
    if tables.named("Port", spec.name) is None:
        bridge.addvalue("ports", _insert_port(tables, transaction, spec))
    else:
        ensure_interface(tables, transaction, bridge, spec)


def _insert_port(tables: Tables, transaction: Transaction, spec: InterfaceSpec) -> Any:
    interface = transaction.insert(tables["Interface"])
    interface.name = spec.name
    _set_interface(interface, spec)
    port = transaction.insert(tables["Port"])
    port.name = spec.name
    port.interfaces = [interface]
    return port


def _set_interface(interface: Any, spec: InterfaceSpec) -> None:
    _set(interface, "type", spec.type)
    _set(interface, "options", spec.options)
    _set(interface, "mac", _optional(spec.mac))
    _set(interface, "mtu_request", _optional(spec.mtu_request))
    _set(interface, "ofport_request", _optional(spec.ofport_request))
    if spec.external_ids:
        _set(interface, "external_ids", spec.external_ids)


class PodPorts:
    """Pod ports, each read again only when its row has changed; for one thread."""

    def __init__(self) -> None:
        """Nothing is read yet."""
        self._read: dict[UUID, tuple[int, PodPort | None]] = {}

    def all(self, tables: Tables) -> tuple[PodPort, ...]:
        """Every Pod port, sorted by name."""
        rows = tables["Interface"].rows
        for gone in self._read.keys() - rows.keys():
            del self._read[gone]
        ports = [port for row in rows.values() if (port := self._one(tables, row)) is not None]
        return tuple(sorted(ports, key=lambda port: port.port_name))

    def _one(self, tables: Tables, row: Any) -> PodPort | None:
        version = tables.version(row)
        known = self._read.get(row.uuid)
        if known is None or known[0] != version:
            known = (version, pod_port_of(row.name, row.external_ids, *_answer(row)))
            self._read[row.uuid] = known
        return known[1]


def _answer(row: Any) -> tuple[OfPort, str]:
    """The ofport (0: none) and the error that OVS wrote."""
    ofport = first(row.ofport, 0)
    return OfPort(max(ofport, 0)), first(row.error, "")


def state_of(row: Any) -> InterfaceState:
    """What OVS says of an interface."""
    ofport, error = _answer(row)
    return InterfaceState(
        name=row.name,
        type=row.type,
        ofport=ofport,
        error=error,
        mac_in_use=first(row.mac_in_use, ""),
    )


def settled(tables: Tables, name: str) -> InterfaceState | None:
    """The interface once OVS has said either way."""
    row = tables.named("Interface", name)
    if row is None or (not row.ofport and not row.error):
        return None
    return state_of(row)


# --- external_ids ---------------------------------------------------------------------------------

_PREFIX: Final = "dunlin-"


def external_ids_of(port: PodPort) -> dict[str, str]:
    """The durable record; `iface-id` and `attached-mac` are the names that others look for."""
    record = {
        "namespace": port.pod_namespace,
        "name": port.pod_name,
        "uid": port.pod_uid,
        "container-id": port.container_id,
        "ifname": port.ifname,
        "netns": port.netns,
        "ips": _joined(port.ips),
        "gateways": _joined(port.gateways),
        "mtu": str(port.mtu_bytes),
    }
    return {
        "iface-id": f"{port.pod_namespace}/{port.pod_name}/{port.ifname}",
        "attached-mac": port.mac,
        **{_PREFIX + key: value for key, value in record.items()},
    }


def pod_port_of(name: str, ids: Mapping[str, str], ofport: OfPort, error: str) -> PodPort | None:
    """
    Inverse of `external_ids_of`; None for a port that is not a Pod's.

    A record that somebody damaged gives None too: such a port is nobody's attachment.
    """
    container_id = ids.get(_PREFIX + "container-id")
    if not container_id or "attached-mac" not in ids:
        return None
    try:
        ips, gateways = _split(ids.get(_PREFIX + "ips")), _split(ids.get(_PREFIX + "gateways"))
        mtu = int(ids.get(_PREFIX + "mtu", "0"))
    except ValueError:
        return None
    return PodPort(
        port_name=name,
        pod_namespace=ids.get(_PREFIX + "namespace", ""),
        pod_name=ids.get(_PREFIX + "name", ""),
        pod_uid=ids.get(_PREFIX + "uid", ""),
        container_id=container_id,
        ifname=ids.get(_PREFIX + "ifname", "eth0"),
        netns=ids.get(_PREFIX + "netns", ""),
        ips=ips,
        gateways=gateways,
        mac=MacAddress(ids["attached-mac"]),
        mtu_bytes=mtu,
        ofport=ofport,
        error=error,
    )


def _joined(addresses: tuple[IPAddress, ...]) -> str:
    return ",".join(map(str, addresses))


def _split(text: str | None) -> tuple[IPAddress, ...]:
    return tuple(ip_address(part) for part in text.split(",")) if text else ()
