"""A simulated switch: real OpenFlow 1.5 on TCP, but it only counts what it is told to hold."""

import asyncio
import struct
from collections import Counter

from dunlin.openflow import codec, wire_switch
from dunlin.openflow.fake import FakeSwitch
from dunlin.openflow.fake_session import FakeSession
from dunlin.openflow.messages import BundleReply

RECONNECT_S = 1.0
BUNDLE_ADD = 34
_HEADER = struct.Struct("!xBHI")


class LightSession(FakeSession):
    """As a fake switch, but modifications are counted, not read: thousands fit one process."""

    added = 0

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
                self.added += 1
            else:
                one = data[offset:end]
                codec.parse_header(one)
                answers += self._answer(one, kind, xid)
            offset = end
        self._buffer = data[offset:]
        return answers

    def _commit(self, bundle_id: int, xid: int, _data: bytes) -> list[bytes]:
        self._bundle(bundle_id, remove=True)
        return [wire_switch.bundle_reply(BundleReply(xid, bundle_id, "commit"))]


class LightSwitch:
    """One switch of dpid `dpid`; `counts`: bytes received, sessions ended so far."""

    def __init__(self, dpid: int) -> None:
        self.switch = FakeSwitch(dpid=dpid)
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
        session = LightSession(self.switch)
        try:
            writer.write(session.hello())
            while data := await reader.read(1 << 18):
                self.counts["bytes"] += len(data)
                writer.write(b"".join(session.receive(data)))
                await writer.drain()
        finally:
            writer.close()
