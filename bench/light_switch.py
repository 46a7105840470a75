"""A simulated switch: real OpenFlow 1.5 on TCP, but it only counts what it is told to hold."""

import asyncio
from collections import Counter

from dunlin.openflow import wire_switch
from dunlin.openflow.fake import FakeSwitch
from dunlin.openflow.fake_session import FakeSession
from dunlin.openflow.messages import BundleReply

RECONNECT_S = 1.0


class LightSession(FakeSession):
    """As a fake switch, without decoding modifications: thousands fit one process."""

    added = 0

    def _bundle_add(self, _data: bytes, _xid: int) -> list[bytes]:
        self.added += 1
        return []

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
