"""
Packets that a switch sends to be refused: answered at once, or not at all.

No queue and no waiting: the switch itself holds back packets beyond the rate of its Controller row,
port by port; here a token bucket, and a look whether the session still takes bytes, end what is
too much. So a flood costs bundles nothing but the decoding.
"""

import time
from typing import TYPE_CHECKING

from dunlin.openflow import codec, messages
from dunlin.openflow.reject import answer
from dunlin.pipeline.layout import REJECT_USERDATA
from dunlin.pipeline.reject import reply_actions
from dunlin_flowctl.core.bucket import TokenBucket

if TYPE_CHECKING:
    from dunlin_flowctl.adapters.session import Session
    from dunlin_flowctl.config import FlowctlSettings
    from dunlin_flowctl.metrics import FlowctlMetrics


class Refuser:
    """Answers for one session while this replica is the switch's master."""

    def __init__(
        self, session: "Session", settings: "FlowctlSettings", metrics: "FlowctlMetrics"
    ) -> None:
        self._session = session
        self._metrics = metrics
        self._bucket = TokenBucket(settings.reject_rate, settings.reject_burst)

    def packet_in(self, packet: messages.PacketIn) -> None:
        """Answer, or count why not: limited, busy, unanswerable, unknown."""
        self._metrics.rejects.labels(self._answer(packet)).inc()

    def _answer(self, packet: messages.PacketIn) -> str:
        if packet.userdata != REJECT_USERDATA:
            return "unknown"
        if not self._bucket.take(time.monotonic()):
            return "limited"
        found = answer(packet.data)
        if found is None:
            return "unanswerable"
        actions = reply_actions(packet.match)
        sent = self._session.try_write(codec.encode_packet_out(found.frame, actions))
        return found.kind.value if sent else "busy"
