"""
Open vSwitch through OVSDB: each change one transaction, each wait for OVS's own word.

Pod ports carry their attachment in Interface.external_ids: after any restart of the agent that is
the durable record of what stands on the node. Source: ovs-vswitchd.conf.db(5).
"""

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

from ovs.db.idl import Transaction

from dunlin.model.ids import OfPort
from dunlin_agent.adapters.ovs_spec import (
    BridgeSpec,
    InterfaceSpec,
    InterfaceState,
    PodPort,
    SslSpec,
    SwitchState,
)
from dunlin_agent.adapters.ovsdb_rows import (
    PodPorts,
    add_interface,
    ensure_bridge,
    ensure_ssl,
    external_ids_of,
    first,
    merge,
    root_of,
    rows_of,
    settled,
    state_of,
)
from dunlin_agent.adapters.ovsdb_session import OvsdbError, OvsdbSession, Tables, fetch_schema
from dunlin_agent.adapters.ovsdb_timeouts import read_policies, write_policies
from dunlin_agent.timeouts.core import ZonePolicy, next_write

COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "Open_vSwitch": (
        "bridges",
        "cur_cfg",
        "datapaths",
        "dpdk_initialized",
        "dpdk_version",
        "iface_types",
        "next_cfg",
        "other_config",
        "ssl",
    ),
    "SSL": ("bootstrap_ca_cert", "ca_cert", "certificate", "private_key"),
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
        "admin_state",
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
    "CT_Timeout_Policy": ("external_ids", "timeouts"),
    "CT_Zone": ("external_ids", "limit", "timeout_policy"),
    "Datapath": ("ct_zones",),
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

SINCE: Final[Mapping[str, frozenset[str]]] = {"CT_Zone": frozenset({"limit"})}
"""Columns that an Open vSwitch before 3.3 does not have."""

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
        self._pod_ports = PodPorts()

    async def start(self) -> None:
        """
        Connect.

        Raises:
            OvsdbError: no ovsdb-server within 10 s.
        """
        schema = await asyncio.to_thread(fetch_schema, self._remote)
        columns = _there(schema)
        self._opened = OvsdbSession(self._remote, columns, schema, self._on_connection)
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
        self,
        bridges: tuple[BridgeSpec, ...],
        other_config: Mapping[str, str] | None = None,
        ssl: SslSpec | None = None,
    ) -> None:
        """
        Make bridges and Open_vSwitch.other_config as given; wait until vswitchd has done it.

        Only what differs is written. Ports that a bridge has beyond its spec stay.

        Raises:
            OvsdbError: refused, or vswitchd did not follow within APPLY_TIMEOUT_SECONDS.
            PortError: vswitchd could not make one of the interfaces.
        """

        def change(tables: Tables, transaction: Transaction) -> None:
            root = root_of(tables)
            merge(root, "other_config", other_config or {})
            if ssl is not None:
                ensure_ssl(tables, transaction, root, ssl)
            for bridge in bridges:
                ensure_bridge(tables, transaction, root, bridge)

        await self._configure(change)
        wanted = {spec.name for bridge in bridges for spec in bridge.interfaces}
        for state in await self.interfaces():
            if state.name in wanted and state.error:
                raise PortError(f"interface {state.name}: {state.error}")

    async def remove_bridges(self, *names: str) -> None:
        """Delete the bridges that are there, and wait until vswitchd has done it."""

        def change(tables: Tables, _transaction: Transaction) -> None:
            root = root_of(tables)
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
            row = tables.named("Bridge", bridge)
            if row is None:
                raise OvsdbError(f"no bridge {bridge}")
            add_interface(tables, transaction, row, spec)

        await self._session.transact(change)
        state = await self._session.wait_for(
            lambda tables: settled(tables, port.port_name),
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
            row = tables.named("Bridge", bridge)
            for port in (tables.named("Port", name) for name in names):
                if row is not None and port is not None:
                    row.delvalue("ports", port)

        await self._session.transact(change)

    async def pod_ports(self) -> tuple[PodPort, ...]:
        """Every Pod port, sorted by name."""
        return await self._session.read(self._pod_ports.all)

    async def pod_ports_changed(self, known: tuple[PodPort, ...]) -> None:
        """Return once `pod_ports` would give something else than `known`."""
        await self._session.wait_for(
            lambda tables: self._pod_ports.all(tables) != known, None, "another Pod port"
        )

    async def interfaces(self) -> tuple[InterfaceState, ...]:
        """Every interface of every bridge, sorted by name."""
        return await self._session.read(
            lambda tables: tuple(
                sorted(map(state_of, rows_of(tables, "Interface")), key=lambda state: state.name)
            )
        )

    async def until_up(self, interface: str) -> None:
        """
        Return once ovs-vswitchd has seen that the kernel's device is up: it forwards to it then.

        Raises:
            OvsdbError: not within seconds.
        """

        def up(tables: Tables) -> bool:
            row = tables.named("Interface", interface)
            return row is not None and row.admin_state == ["up"]

        await self._session.wait_for(up, APPLY_TIMEOUT_SECONDS, f"{interface} to be up")

    async def ensure_timeouts(
        self, zones: frozenset[int], seconds: int, life: str
    ) -> dict[int, ZonePolicy]:
        """
        Write what `timeouts.core.next_write` asks for, and wait each time until vswitchd has it.

        Returns:
            Zone -> its timeouts, as they are then: somebody may have written in between.
        Raises:
            OvsdbError: refused, or vswitchd did not follow within APPLY_TIMEOUT_SECONDS.
        """

        def change(tables: Tables, transaction: Transaction) -> None:
            write = next_write(read_policies(tables), zones, seconds, life)
            if write is not None:
                write_policies(tables, transaction, write)

        await self._followed()  # what an agent before us announced
        await self._configure(change)
        await self._configure(change)
        return await self.timeouts()

    async def timeouts(self) -> dict[int, ZonePolicy]:
        """Zone -> its timeouts; a zone without any is left out."""
        return await self._session.read(read_policies)

    async def timeouts_changed(self, known: dict[int, ZonePolicy]) -> None:
        """Return once zones have other timeouts than `known`."""
        await self._session.wait_for(
            lambda tables: read_policies(tables) != known, None, "other timeouts"
        )

    async def controllers_connected(self) -> dict[str, bool]:
        """Whether each controller target has a session with a bridge."""
        return await self._session.read(
            lambda tables: {row.target: row.is_connected for row in rows_of(tables, "Controller")}
        )

    async def state(self) -> SwitchState:
        """Versions and capabilities."""

        def look(tables: Tables) -> SwitchState:
            root = root_of(tables)
            return SwitchState(
                dpdk_initialized=root.dpdk_initialized,
                dpdk_version=first(root.dpdk_version, ""),
                userspace_tso=root.other_config.get("userspace-tso-enable") == "true",
                iface_types=frozenset(root.iface_types),
            )

        return await self._session.read(look)

    async def _configure(self, change: Callable[[Tables, Transaction], None]) -> None:
        """Make a change and wait until vswitchd says that it has followed it (cur_cfg)."""

        def numbered(tables: Tables, transaction: Transaction) -> int:
            root = root_of(tables)
            change(tables, transaction)
            number: int = root.next_cfg
            # Rows touched so far; without any there is nothing to number, and nothing is sent.
            if transaction._txn_rows:  # noqa: SLF001 - the package has no other way
                number += 1
                root.verify("next_cfg")
                root.next_cfg = number
            return number

        await self._followed(await self._session.transact(numbered))

    async def _followed(self, number: int | None = None) -> None:
        """Wait until vswitchd has followed change `number`, or all that were made so far."""

        def followed(tables: Tables) -> bool:
            root = root_of(tables)
            return bool(root.cur_cfg >= (root.next_cfg if number is None else number))

        await self._session.wait_for(
            followed,
            APPLY_TIMEOUT_SECONDS,
            "ovs-vswitchd to follow its configuration",
        )


def _there(schema: dict[str, Any]) -> dict[str, tuple[str, ...]]:
    """COLUMNS, without those that this Open vSwitch's schema does not have yet."""
    return {
        table: tuple(
            name
            for name in names
            if name not in SINCE.get(table, ()) or name in schema["tables"][table]["columns"]
        )
        for table, names in COLUMNS.items()
    }
