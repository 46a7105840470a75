"""
Simulated switches: real OpenFlow 1.5 on TCP, thousands in one process.

A light one only counts what it is told to hold. One that remembers holds it, and shows it in dumps:
a modification is read once, whichever switch it is for.
"""

import asyncio
import struct
from collections import Counter
from functools import cache
from typing import Any

from dunlin.openflow import codec, wire_switch
from dunlin.openflow.fake import FakeSwitch
from dunlin.openflow.fake_session import FakeSession
from dunlin.openflow.messages import BundleReply, InstalledFlow, OpenFlowError
from dunlin.openflow.wire_flow import decode_flow_mod
from dunlin.openflow.wire_group import decode_bundle_add, decode_group_mod
from dunlin.pipeline.layout import Table

RECONNECT_S = 1.0
BUNDLE_ADD, GROUP_MOD = 34, 15
FLOWS, COUNTS, GROUPS = 1, 2, 7
"""Kinds of OFPT_MULTIPART_REQUEST: OFPMP_FLOW_DESC, OFPMP_AGGREGATE_STATS, OFPMP_GROUP_DESC."""
_HEADER = struct.Struct("!xBHI")


class LightSession(FakeSession):
    """As a fake switch, but modifications are counted, not read: thousands fit one process."""

    added = 0
    remembers = False

    def receive(self, data: bytes) -> list[bytes]:
        """As a fake switch; of a bundle's messages nothing but the header is looked at."""
        if self._buffer:
            data = self._buffer + data
        offset, last, answers = 0, len(data) - codec.HEADER_LEN, list[bytes]()
        while offset <= last:
            kind, length, xid = _HEADER.unpack_from(data, offset)
            end = offset + length
            if end > len(data):
                break
            if kind == BUNDLE_ADD and length > codec.HEADER_LEN:
                self._add(data[offset:end] if self.remembers else b"")
            else:
                one = data[offset:end]
                codec.parse_header(one)
                answers += self._answer(one, kind, xid)
            offset = end
        self._buffer = data[offset:]
        return answers

    def _add(self, _message: bytes) -> None:
        self.added += 1

    def _commit(self, bundle_id: int, xid: int, _data: bytes) -> list[bytes]:
        self._bundle(bundle_id, remove=True)
        return [wire_switch.bundle_reply(BundleReply(xid, bundle_id, "commit"))]


@cache
def read(message: bytes) -> tuple[int, object, bytes | None]:
    """(kind, key, entry of a dump) of a bundled message; an entry of None: it deletes."""
    _, modification = decode_bundle_add(message)
    if modification[1] == GROUP_MOD:
        command, group = decode_group_mod(modification)
        if command not in {"add", "modify", "delete"}:
            raise OpenFlowError(f"group command {command}")
        kept = None if command == "delete" else wire_switch.group_desc(group)
        return GROUPS, group.group_id, kept
    command, flow, _, flags = decode_flow_mod(modification)
    if command not in {"add", "delete_strict"}:
        raise OpenFlowError(f"flow command {command}")
    kept = wire_switch.flow_desc(InstalledFlow(flow, flags=flags)) if command == "add" else None
    return FLOWS, flow.key, kept


class Held:
    """
    What a switch that remembers holds: of each kind, entries of a dump by key.

    `says`: also what flowctl has it say of itself; else its next owner has to look.
    """

    def __init__(self, *, says: bool = True) -> None:
        self.entries: dict[int, dict[Any, bytes]] = {FLOWS: {}, GROUPS: {}}
        self.says = says

    def select(self, table: int | None) -> list[bytes]:
        """Flows of one table; None: of all."""
        flows = self.entries[FLOWS]
        if table is None:
            return list(flows.values())
        return [entry for key, entry in flows.items() if key[0] == table]

    def apply(self, message: bytes) -> None:
        """One bundled message."""
        kind, key, entry = read(message)
        if not self.says and isinstance(key, tuple) and key[0] == Table.DIGEST:
            return
        if entry is None:
            self.entries[kind].pop(key, None)
        else:
            self.entries[kind][key] = entry


class RememberingSession(LightSession):
    """Of a switch that keeps what it is told, also between sessions."""

    remembers = True

    def __init__(self, switch: FakeSwitch, held: Held) -> None:
        super().__init__(switch)
        self._held = held
        self._open: list[bytes] = []

    def _add(self, message: bytes) -> None:
        self.added += 1
        self._open.append(message)

    def _commit(self, bundle_id: int, xid: int, data: bytes) -> list[bytes]:
        added, self._open = self._open, []
        for message in added:
            self._held.apply(message)
        return super()._commit(bundle_id, xid, data)

    def _multipart(self, data: bytes, xid: int) -> list[bytes]:
        kind = int.from_bytes(data[8:10], "big")
        if kind == GROUPS:
            return wire_switch.multipart(xid, kind, list(self._held.entries[GROUPS].values()))
        if kind not in {FLOWS, COUNTS}:
            return super()._multipart(data, xid)
        # All flows are Dunlin's: a cookie that is asked for leaves none out.
        table, _, _ = wire_switch.decode_flow_request(data)
        found = self._held.select(table)
        return wire_switch.multipart(
            xid, kind, found if kind == FLOWS else [wire_switch.aggregate(len(found))]
        )


class LightSwitch:
    """One switch of dpid `dpid`; `counts`: bytes, bundled messages received, sessions ended."""

    def __init__(self, dpid: int, *, remembers: bool = False, says: bool = True) -> None:
        self.switch = FakeSwitch(dpid=dpid)
        self.held = Held(says=says) if remembers else None
        self.counts: Counter[str] = Counter()

    async def run(self, host: str, port: int) -> None:
        """Connects again whenever the other side ends, as switches do, until cancelled."""
        while True:
            try:
                await self._session(host, port)
                self.counts["ended"] += 1
            except OSError:
                self.counts["ended"] += 1
            await asyncio.sleep(RECONNECT_S)

    async def _session(self, host: str, port: int) -> None:
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 18)
        held = self.held
        session = (
            LightSession(self.switch) if held is None else RememberingSession(self.switch, held)
        )
        try:
            writer.write(session.hello())
            while data := await reader.read(1 << 18):
                self.counts["bytes"] += len(data)
                before = session.added
                writer.write(b"".join(session.receive(data)))
                self.counts["added"] += session.added - before
                await writer.drain()
        finally:
            writer.close()
