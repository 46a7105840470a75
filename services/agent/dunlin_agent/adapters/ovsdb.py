"""
Open vSwitch through OVSDB: each change one transaction, each wait for OVS's own word.

Pod ports carry their attachment in Interface.external_ids: after any restart of the agent that is
the durable record of what stands on the node. Source: ovs-vswitchd.conf.db(5).
"""

import asyncio
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any, Final

from ovs.db.idl import Transaction

from dunlin.model.addresses import IPAddress, MacAddress
from dunlin.model.ids import OfPort
from dunlin_agent.adapters.ovs_spec import (
    BridgeSpec,
    ControllerSpec,
    InterfaceSpec,
    InterfaceState,
    PodPort,
    SwitchState,
)
from dunlin_agent.adapters.ovsdb_session import OvsdbError, OvsdbSession, Tables, fetch_schema

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "Open_vSwitch": (
        "bridges",
        "cur_cfg",
        "dpdk_initialized",
        "dpdk_version",
        "iface_types",
        "next_cfg",
        "other_config",
        "ovs_version",
    ),
    "Bridge": (
        "controller",
        "datapath_type",
        "fail_mode",
        "name",
        "other_config",
        "ports",
        "protocols",
    ),
    "Port": ("interfaces", "name"),
    "Interface": (
        "error",
        "external_ids",
        "mac",
        "mac_in_use",
        "mtu_request",
        "name",
        "ofport",
        "ofport_request",
        "options",
        "type",
    ),
    "Controller": (
        "connection_mode",
        "controller_burst_limit",
        "controller_rate_limit",
        "inactivity_probe",
        "is_connected",
        "max_backoff",
        "target",
    ),
}

APPLY_TIMEOUT_SECONDS: Final = 30.0


class PortError(Exception):
    """OVS could not make a port; the message is OVS's own."""


class Ovs:
    """The Open vSwitch of one node."""

    def __init__(self, remote: str, on_connection: Callable[[bool], None] | None = None) -> None:
        """`remote` and `on_connection` as in OvsdbSession; nothing is opened before `start`."""
        self._remote = remote
        self._on_connection = on_connection
        self._opened: OvsdbSession | None = None

    async def start(self) -> None:
        """
        Connect.

        Raises:
            OvsdbError: no ovsdb-server within 10 s.
        """
        schema = await asyncio.to_thread(fetch_schema, self._remote)
        self._opened = OvsdbSession(self._remote, COLUMNS, schema, self._on_connection)
        await self._opened.start()

    async def close(self) -> None:
        """End the session; OVS keeps everything."""
        if self._opened is not None:
            await self._opened.close()

    @property
    def connected(self) -> bool:
        """There is a current session."""
        return self._opened is not None and self._opened.connected

    @property
    def _session(self) -> OvsdbSession:
        assert self._opened is not None, "start() first"
        return self._opened

    async def ensure(
        self, bridges: tuple[BridgeSpec, ...], other_config: Mapping[str, str] | None = None
    ) -> None:
        """
        Make bridges and Open_vSwitch.other_config as given; wait until vswitchd has done it.

        Only what differs is written. Ports that a bridge has beyond its spec stay.

        Raises:
            OvsdbError: refused, or vswitchd did not follow within APPLY_TIMEOUT_SECONDS.
            PortError: vswitchd could not make one of the interfaces.
        """

        def change(tables: Tables, transaction: Transaction) -> None:
            root = _root(tables)
            _merge(root, "other_config", other_config or {})
            for bridge in bridges:
                _ensure_bridge(tables, transaction, root, bridge)

        await self._configure(change)
        wanted = {spec.name for bridge in bridges for spec in bridge.interfaces}
        for state in await self.interfaces():
            if state.name in wanted and state.error:
                raise PortError(f"interface {state.name}: {state.error}")

    async def remove_bridges(self, *names: str) -> None:
        """Delete the bridges that are there, and wait until vswitchd has done it."""

        def change(tables: Tables, _transaction: Transaction) -> None:
            root = _root(tables)
            root.bridges = [row for row in root.bridges if row.name not in names]

        await self._configure(change)

    async def add_pod_port(self, bridge: str, port: PodPort) -> OfPort:
        """
        Attach a Pod's interface (a device of the node named `port.port_name`), in one transaction.

        A port of that name is taken over: its record is replaced.

        Raises:
            PortError: OVS refused it; the port is removed again.
            OvsdbError: no session, or no answer in time.
        """
        spec = InterfaceSpec(name=port.port_name, external_ids=external_ids_of(port))

        def change(tables: Tables, transaction: Transaction) -> None:
            row = _bridge(tables, bridge)
            if row is None:
                raise OvsdbError(f"no bridge {bridge}")
            _ensure_interface(tables, transaction, row, spec)

        await self._session.transact(change)
        state = await self._session.wait_for(
            lambda tables: _settled(tables, port.port_name),
            APPLY_TIMEOUT_SECONDS,
            f"the OpenFlow port of {port.port_name}",
        )
        if state.ofport == 0:
            await self.delete_ports(bridge, port.port_name)
            raise PortError(f"{port.port_name}: {state.error or 'no OpenFlow port'}")
        return state.ofport

    async def delete_ports(self, bridge: str, *names: str) -> None:
        """Remove the ports that are there, in one transaction; success when none is."""

        def change(tables: Tables, _transaction: Transaction) -> None:
            row = _bridge(tables, bridge)
            if row is not None and any(port.name in names for port in row.ports):
                row.ports = [port for port in row.ports if port.name not in names]

        await self._session.transact(change)

    async def pod_ports(self, bridge: str) -> tuple[PodPort, ...]:
        """Every Pod port of the bridge, sorted by name."""

        return await self._session.read(lambda tables: _pod_ports(tables, bridge))

    async def pod_ports_changed(self, bridge: str, known: tuple[PodPort, ...]) -> None:
        """Return once `pod_ports` would give something else than `known`."""
        await self._session.wait_for(
            lambda tables: _pod_ports(tables, bridge) != known, None, "another Pod port"
        )

    async def interfaces(self) -> tuple[InterfaceState, ...]:
        """Every interface of every bridge, sorted by name."""
        return await self._session.read(
            lambda tables: tuple(
                sorted(map(_state, _rows(tables, "Interface")), key=lambda state: state.name)
            )
        )

    async def controllers_connected(self) -> dict[str, bool]:
        """Whether each controller target has a session with a bridge."""
        return await self._session.read(
            lambda tables: {row.target: row.is_connected for row in _rows(tables, "Controller")}
        )

    async def state(self) -> SwitchState:
        """Versions and capabilities."""

        def look(tables: Tables) -> SwitchState:
            root = _root(tables)
            return SwitchState(
                ovs_version=_first(root.ovs_version, ""),
                dpdk_initialized=root.dpdk_initialized,
                dpdk_version=_first(root.dpdk_version, ""),
                userspace_tso=root.other_config.get("userspace-tso-enable") == "true",
                iface_types=frozenset(root.iface_types),
            )

        return await self._session.read(look)

    async def _configure(self, change: Callable[[Tables, Transaction], None]) -> None:
        """Make a change and wait until vswitchd says that it has followed it (cur_cfg)."""

        def numbered(tables: Tables, transaction: Transaction) -> int:
            root = _root(tables)
            change(tables, transaction)
            number: int = root.next_cfg
            # Rows touched so far; without any there is nothing to number, and nothing is sent.
            if transaction._txn_rows:  # noqa: SLF001
                number += 1
                root.verify("next_cfg")
                root.next_cfg = number
            return number

        number = await self._session.transact(numbered)
        await self._session.wait_for(
            lambda tables: _root(tables).cur_cfg >= number,
            APPLY_TIMEOUT_SECONDS,
            "ovs-vswitchd to follow its configuration",
        )


# --- rows -----------------------------------------------------------------------------------------


def _first(values: Any, default: Any) -> Any:
    """The value of an optional column, which the IDL gives as a list."""
    return values[0] if values else default


def _rows(tables: Tables, table: str) -> tuple[Any, ...]:
    return tuple(tables[table].rows.values())


def _root(tables: Tables) -> Any:
    for row in _rows(tables, "Open_vSwitch"):
        return row
    raise OvsdbError("OVSDB has no Open_vSwitch row: was it initialised (ovs-vsctl init)?")


def _by_name(tables: Tables, table: str, name: str) -> Any | None:
    return next((row for row in _rows(tables, table) if row.name == name), None)


def _bridge(tables: Tables, name: str) -> Any | None:
    return _by_name(tables, "Bridge", name)


def _set(row: Any, column: str, value: Any) -> None:
    """Write a column only when it differs, so that an unchanged row is no transaction."""
    if getattr(row, column, None) != value:  # a row just inserted has no columns yet
        setattr(row, column, value)


def _merge(row: Any, column: str, items: Mapping[str, str]) -> None:
    """Write these keys of a map column; other keys are others'."""
    _set(row, column, {**getattr(row, column, {}), **items})


def _optional(value: Any) -> list[Any]:
    return [] if value is None else [value]


def _ensure_bridge(tables: Tables, transaction: Transaction, root: Any, spec: BridgeSpec) -> None:
    row = _bridge(tables, spec.name)
    if row is None:
        row = transaction.insert(tables["Bridge"])
        row.name = spec.name
        row.ports = []
        root.bridges = [*root.bridges, row]
    _set(row, "datapath_type", spec.datapath_type)
    _set(row, "fail_mode", [spec.fail_mode])
    _set(row, "protocols", sorted(spec.protocols))
    _merge(row, "other_config", spec.other_config)
    _ensure_controllers(tables, transaction, row, spec.controllers)
    if all(interface.name != spec.name for interface in spec.interfaces):
        local = InterfaceSpec(name=spec.name, type="internal")
        _ensure_interface(tables, transaction, row, local)
    for interface in spec.interfaces:
        _ensure_interface(tables, transaction, row, interface)
    if any(port.name in spec.absent for port in row.ports):
        row.ports = [port for port in row.ports if port.name not in spec.absent]


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


def _ensure_interface(
    tables: Tables, transaction: Transaction, bridge: Any, spec: InterfaceSpec
) -> None:
    """The interface and its port, on this bridge and on no other."""
    port = _by_name(tables, "Port", spec.name)
    if port is None:
        interface = transaction.insert(tables["Interface"])
        interface.name = spec.name
        port = transaction.insert(tables["Port"])
        port.name = spec.name
        port.interfaces = [interface]
    interface = port.interfaces[0]
    _set(interface, "type", spec.type)
    _set(interface, "options", spec.options)
    _set(interface, "mac", _optional(spec.mac))
    _set(interface, "mtu_request", _optional(spec.mtu_request))
    _set(interface, "ofport_request", _optional(spec.ofport_request))
    if spec.external_ids:
        _set(interface, "external_ids", spec.external_ids)
    for other in _rows(tables, "Bridge"):
        if other.name != bridge.name and port in other.ports:
            other.ports = [row for row in other.ports if row != port]
    if port not in bridge.ports:
        bridge.ports = [*bridge.ports, port]


def _pod_ports(tables: Tables, bridge: str) -> tuple[PodPort, ...]:
    row = _bridge(tables, bridge)
    interfaces = [] if row is None else [i for port in row.ports for i in port.interfaces]
    found = (pod_port_of(i.name, i.external_ids, *_answer(i)) for i in interfaces)
    return tuple(sorted((port for port in found if port), key=lambda port: port.port_name))


def _answer(row: Any) -> tuple[OfPort, str]:
    """The ofport (0: none) and the error that OVS wrote."""
    ofport = _first(row.ofport, 0)
    return OfPort(max(ofport, 0)), _first(row.error, "")


def _state(row: Any) -> InterfaceState:
    ofport, error = _answer(row)
    return InterfaceState(
        name=row.name,
        type=row.type,
        ofport=ofport,
        error=error,
        mac_in_use=_first(row.mac_in_use, ""),
    )


def _settled(tables: Tables, name: str) -> InterfaceState | None:
    """The interface once OVS has said either way."""
    row = _by_name(tables, "Interface", name)
    if row is None or (not row.ofport and not row.error):
        return None
    return _state(row)


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
