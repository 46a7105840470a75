"""A simulated switch: real OpenFlow 1.5 on TCP, but it only counts what it is told to hold."""

import asyncio
from collections import Counter

from dunlin.openflow import wire_switch
from dunlin.openflow.fake import FakeSwitch
from dunlin.openflow.fake_session import FakeSession
from dunlin.openflow.messages import BundleReply


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
    """One switch of dpid `dpid`; `counts`: bytes received so far."""

    def __init__(self, dpid: int) -> None:
        self.session = LightSession(FakeSwitch(dpid=dpid))
        self.counts: Counter[str] = Counter()

    async def run(self, host: str, port: int) -> None:
        """Until the other side ends or the task is cancelled."""
        reader, writer = await asyncio.open_connection(host, port, limit=1 << 18)
        try:
            writer.write(self.session.hello())
            while data := await reader.read(1 << 18):
                self.counts["bytes"] += len(data)
                writer.write(b"".join(self.session.receive(data)))
                await writer.drain()
        finally:
            writer.close()
