"""
The fake switch on the wire: OpenFlow 1.5 as ovs-vswitchd speaks it.

`FakeSession` turns bytes received into bytes to send, without I/O; `FakeOpenFlowSwitch` puts it on
TCP.
"""

import asyncio
import struct
from collections.abc import Callable
from typing import Literal, cast

from dunlin.openflow import codec, wire_switch
from dunlin.openflow.fake import (
    ERRORS,
    BundleRefused,
    Crashed,
    FakeSwitch,
    FlowMod,
    GroupMod,
    Mod,
    Refused,
)
from dunlin.openflow.flow import Meter
from dunlin.openflow.messages import (
    BundleReply,
    FeaturesReply,
    FlowRemoved,
    OpenFlowError,
    PacketIn,
    Port,
    PortCounters,
    PortStatus,
    RoleReply,
)
from dunlin.openflow.wire_flow import decode_flow_mod
from dunlin.openflow.wire_group import decode_bundle_add, decode_group_mod
from dunlin.openflow.wire_meter import encode_meter_config, encode_meter_stats

_HELLO, _ECHO_REQUEST, _ECHO_REPLY, _EXPERIMENTER, _FEATURES_REQUEST = 0, 2, 3, 4, 5
_SET_CONFIG, _PACKET_OUT, _FLOW_MOD, _GROUP_MOD, _MULTIPART_REQUEST = 9, 13, 14, 15, 18
_BARRIER_REQUEST, _ROLE_REQUEST, _SET_ASYNC, _METER_MOD = 20, 24, 28, 29
_BUNDLE_CONTROL, _BUNDLE_ADD = 33, 34
_METER_ADD, _METER_MODIFY, _METER_DELETE = 0, 1, 2
_ROLES = ("nochange", "equal", "master", "slave")
FlowCommands = Literal["add", "modify", "modify_strict", "delete", "delete_strict"]
GroupCommands = Literal["add", "modify", "delete", "insert_bucket", "remove_bucket"]
CAPABILITIES = 0x4F
"""FLOW_STATS, TABLE_STATS, PORT_STATS, GROUP_STATS, QUEUE_STATS: as OVS."""


class FakeSession:
    """One controller's connection to a `FakeSwitch`."""

    def __init__(self, switch: FakeSwitch) -> None:
        self.switch = switch
        self._role_set = "equal"
        self.received: list[int] = []
        """Types of all messages received, in order."""
        self.packets_out: list[bytes] = []
        """Every OFPT_PACKET_OUT received, whole."""
        self._bundles: dict[int, list[tuple[int, bytes]]] = {}
        self._buffer = b""
        self._read = self._answers()

    @property
    def role(self) -> str:
        """Another session that becomes master makes this one slave."""
        is_other = self._role_set == "master" and self.switch.master is not self
        return "slave" if is_other else self._role_set

    def hello(self) -> bytes:
        """What a switch says first."""
        return codec.encode_hello(1)

    def receive(self, data: bytes) -> list[bytes]:
        """
        Answers to what has come; incomplete messages wait for the rest.

        Raises:
            OpenFlowError: what came is no OpenFlow 1.5; a switch would close the session.
            Crashed: OVS would have died of it.
        """
        self._buffer += data
        offset, answers = 0, list[bytes]()
        while len(self._buffer) - offset >= codec.HEADER_LEN:
            header = codec.parse_header(self._buffer[offset : offset + codec.HEADER_LEN])
            if len(self._buffer) - offset < header.length:
                break
            one = self._buffer[offset : offset + header.length]
            offset += header.length
            self.received.append(header.type)
            answers += self._answer(one, header.type, header.xid)
        self._buffer = self._buffer[offset:]
        return answers

    def _answer(self, data: bytes, kind: int, xid: int) -> list[bytes]:
        read = self._read.get(kind)
        if read is None:
            return [self._error(xid, "OFPBRC_BAD_TYPE", data)]
        try:
            return read(data, xid)
        except Refused as refused:
            return [self._error(xid, refused.name, data)]
        except OpenFlowError:
            return [self._error(xid, "OFPBRC_BAD_LEN", data)]

    def _error(self, xid: int, name: str, request: bytes) -> bytes:
        return wire_switch.error(xid, *ERRORS[name], request)

    def _answers(self) -> dict[int, Callable[[bytes, int], list[bytes]]]:
        return {
            _HELLO: self._nothing,
            _ECHO_REQUEST: self._echo,
            _ECHO_REPLY: self._nothing,
            _EXPERIMENTER: self._nothing,
            _FEATURES_REQUEST: self._features,
            _SET_CONFIG: self._nothing,
            _PACKET_OUT: self._packet_out,
            _FLOW_MOD: self._modification,
            _GROUP_MOD: self._modification,
            _MULTIPART_REQUEST: self._multipart,
            _BARRIER_REQUEST: self._barrier,
            _ROLE_REQUEST: self._role,
            _SET_ASYNC: self._nothing,
            _METER_MOD: self._meter,
            _BUNDLE_CONTROL: self._bundle_control,
            _BUNDLE_ADD: self._bundle_add,
        }

    def _nothing(self, _data: bytes, _xid: int) -> list[bytes]:
        return []

    def _meter(self, data: bytes, _xid: int) -> list[bytes]:
        self._refuse_slave()
        command, flags, meter_id = _unpack("!HHI", data, 8)
        exists = meter_id in self.switch.meters
        if command == _METER_DELETE:
            self.switch.delete_meter(meter_id)
            return []
        if command == _METER_ADD and exists:
            raise Refused("OFPMMFC_METER_EXISTS", f"meter {meter_id}")
        if command == _METER_MODIFY and not exists:
            raise Refused("OFPMMFC_UNKNOWN_METER", f"meter {meter_id}")
        rate, burst = _unpack("!II", data, 20)
        unit: Literal["kbps", "pps"] = "kbps" if flags & 1 else "pps"
        self.switch.meters[meter_id] = Meter(meter_id, rate, burst, unit)
        return []

    def _packet_out(self, data: bytes, _xid: int) -> list[bytes]:
        self.packets_out.append(data)
        return []

    def _echo(self, data: bytes, xid: int) -> list[bytes]:
        return [codec.encode_echo_reply(xid, data[8:])]

    def _features(self, _data: bytes, xid: int) -> list[bytes]:
        reply = FeaturesReply(xid, self.switch.dpid, 254, CAPABILITIES)
        return [wire_switch.features_reply(reply)]

    def _barrier(self, _data: bytes, xid: int) -> list[bytes]:
        return [wire_switch.barrier_reply(xid)]

    def _role(self, data: bytes, xid: int) -> list[bytes]:
        number, generation_id = _unpack("!I4xQ", data, 8)
        role = _ROLES[number] if number < len(_ROLES) else "nochange"
        if role in ("master", "slave"):
            # Serial numbers: 64 bits, compared as a signed difference.
            known = self.switch.generation_id
            if known is not None and (generation_id - known) % 2**64 >= 2**63:
                raise Refused("OFPRRFC_STALE", f"generation_id {generation_id}")
            self.switch.generation_id = generation_id
        if role == "master":
            self.switch.master = self
        if role != "nochange":
            self._role_set = role
        newest = self.switch.generation_id
        shown = 2**64 - 1 if newest is None else newest
        return [wire_switch.role_reply(RoleReply(xid, self.role, shown))]

    def _refuse_slave(self) -> None:
        if self.role == "slave":
            raise Refused("OFPBRC_IS_SLAVE", "another session is master")

    def _modification(self, data: bytes, _xid: int) -> list[bytes]:
        self._refuse_slave()
        self.switch.apply(_mod(data))
        return []

    # --- bundles ---

    def _bundle_control(self, data: bytes, xid: int) -> list[bytes]:
        self._refuse_slave()
        bundle_id, kind, _ = _unpack("!IHH", data, 8)
        match kind:
            case 0 if bundle_id in self._bundles:
                raise Refused("OFPBFC_BAD_ID", f"bundle {bundle_id} is open")
            case 0:
                self._bundles[bundle_id] = []
                return [wire_switch.bundle_reply(BundleReply(xid, bundle_id, "open"))]
            case 4:
                return self._commit(bundle_id, xid, data)
            case 6:
                self._bundle(bundle_id, remove=True)
                return [wire_switch.bundle_reply(BundleReply(xid, bundle_id, "discard"))]
        raise Refused("OFPBRC_BAD_TYPE", f"bundle control of type {kind}")

    def _bundle(self, bundle_id: int, *, remove: bool = False) -> list[tuple[int, bytes]]:
        if bundle_id not in self._bundles:
            raise Refused("OFPBFC_BAD_ID", f"bundle {bundle_id}")
        return self._bundles.pop(bundle_id) if remove else self._bundles[bundle_id]

    def _bundle_add(self, data: bytes, xid: int) -> list[bytes]:
        """Malformed is refused now; what a message names is looked up on commit."""
        self._refuse_slave()
        bundle_id, message = decode_bundle_add(data)
        if message[4:8] != data[4:8]:
            raise Refused("OFPBFC_MSG_BAD_XID", f"bundle {bundle_id}")
        if message[1] not in (_FLOW_MOD, _GROUP_MOD):
            raise Refused("OFPBFC_MSG_UNSUP", f"type {message[1]}")
        # OVS opens a bundle that it does not know.
        self._bundles.setdefault(bundle_id, []).append((xid, message))
        return []

    def _commit(self, bundle_id: int, xid: int, data: bytes) -> list[bytes]:
        messages = self._bundle(bundle_id, remove=True)
        try:
            self.switch.apply_bundle([_mod(message) for _, message in messages])
        except BundleRefused as refused:
            message_xid, message = messages[refused.index]
            return [
                self._error(message_xid, refused.name, message),
                self._error(xid, "OFPBFC_MSG_FAILED", data),
            ]
        return [wire_switch.bundle_reply(BundleReply(xid, bundle_id, "commit"))]

    # --- dumps ---

    def _multipart(self, data: bytes, xid: int) -> list[bytes]:
        (kind,) = _unpack("!H", data, 8)
        if kind in (1, 2):
            table, cookie, mask = wire_switch.decode_flow_request(data)
            entries = self.switch.select(cookie, mask, table)
            if kind == 1:
                return wire_switch.multipart(xid, kind, [wire_switch.flow_desc(e) for e in entries])
            return wire_switch.multipart(xid, kind, [wire_switch.aggregate(len(entries))])
        if kind == 7:
            groups = [wire_switch.group_desc(group) for group in self.switch.groups.values()]
            return wire_switch.multipart(xid, kind, groups)
        if kind == 10:
            meters = map(encode_meter_config, self.switch.meters.values())
            return wire_switch.multipart(xid, kind, list(meters))
        if kind == 9:
            stats = map(encode_meter_stats, self.switch.meter_counters())
            return wire_switch.multipart(xid, kind, list(stats))
        if kind == 13:
            ports = [wire_switch.port_desc(port) for port in self.switch.ports.values()]
            return wire_switch.multipart(xid, kind, ports)
        if kind == 4:
            idle = [PortCounters(port, 0.0, *[0] * 8) for port in self.switch.ports]
            return wire_switch.multipart(xid, kind, [wire_switch.port_stats(one) for one in idle])
        if kind in (3, 6):
            return wire_switch.multipart(xid, kind, [])
        raise Refused("OFPBRC_BAD_MULTIPART", f"type {kind}")


def _mod(data: bytes) -> Mod:
    if data[1] == _FLOW_MOD:
        command, flow, cookie_mask, flags = decode_flow_mod(data)
        literal = cast("FlowCommands", command)
        return FlowMod(literal, flow, cookie_mask, flags)
    name, group = decode_group_mod(data)
    return GroupMod(cast("GroupCommands", name), group)


def _unpack(form: str, data: bytes, offset: int) -> tuple[int, ...]:
    try:
        return struct.unpack_from(form, data, offset)
    except struct.error as error:
        raise OpenFlowError(f"message of type {data[1]}: {error}") from error


class FakeOpenFlowSwitch:
    """
    A `FakeSwitch` on TCP; one session at a time, `run` again after it ends.

    `stuck` set: reads and says nothing, as a hanging switch. `inject` sends any bytes, also bad
    ones.
    """

    def __init__(self, switch: FakeSwitch | None = None) -> None:
        self.switch = switch or FakeSwitch()
        self.session: FakeSession | None = None
        self.stuck = False
        self.crashes: list[str] = []
        """Why it died, each time; it comes back empty."""
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, host: str, port: int) -> None:
        """Connect as ovs-vswitchd does to its controller; returns when the session has ended."""
        await self.run(*await asyncio.open_connection(host, port))

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Speak until the other side ends, or `close`; what is no OpenFlow 1.5 ends the session."""
        self.session, self._writer = FakeSession(self.switch), writer
        self.switch.removed = self._flow_removed
        try:
            writer.write(self.session.hello())
            while data := await reader.read(1 << 18):
                if not self.stuck:
                    writer.write(b"".join(self.session.receive(data)))
                    await writer.drain()
        except (OpenFlowError, ConnectionError):
            return
        except Crashed as crashed:
            self.crashes.append(str(crashed))
            self.switch.restart()
        finally:
            self._writer = None
            writer.close()

    def close(self) -> None:
        """End the session as a killed ovs-vswitchd does."""
        if self._writer is not None:
            self._writer.transport.abort()

    def inject(self, data: bytes) -> None:
        """Send these bytes, whatever they are."""
        assert self._writer is not None, "no session"
        self._writer.write(data)

    def packet_in(self, packet: PacketIn) -> None:
        """Send a packet to the controller."""
        self.inject(wire_switch.packet_in(packet))

    def add_port(self, port: Port) -> None:
        """A new port, announced if there is a session."""
        self.switch.ports[port.port] = port
        if self._writer is not None:
            self.inject(wire_switch.port_status(PortStatus(0, "add", port)))

    def remove_port(self, number: int) -> None:
        """A port goes, announced if there is a session."""
        port = self.switch.ports.pop(number)
        if self._writer is not None:
            self.inject(wire_switch.port_status(PortStatus(0, "delete", port)))

    def _flow_removed(self, removed: FlowRemoved) -> None:
        if self._writer is not None:
            self.inject(wire_switch.flow_removed(removed))
