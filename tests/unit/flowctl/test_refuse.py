"""Refusals of one session: what is answered, what is not, and what it may cost."""

from typing import Any

from prometheus_client import CollectorRegistry

from dunlin.openflow.messages import PacketIn
from dunlin.pipeline.layout import REJECT_USERDATA
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.core.bucket import TokenBucket
from dunlin_flowctl.metrics import FlowctlMetrics
from dunlin_flowctl.refuse import Refuser
from tests.unit.openflow.test_reject import SYN_SEGMENT, ipv4_frame


class Sink:
    """A session that takes bytes, or none."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.takes = True

    def try_write(self, data: bytes) -> bool:
        """As a session."""
        if self.takes:
            self.written.append(data)
        return self.takes


def packet_in(data: bytes, userdata: bytes = REJECT_USERDATA) -> PacketIn:
    """As decoded."""
    return PacketIn(0, "action", 22, 0, 1, data, (), userdata)


def test_every_end_is_counted() -> None:
    """Answered, unknown userdata, unanswerable, a slow switch, and beyond the rate."""
    registry = CollectorRegistry()
    sink: Any = Sink()
    settings = FlowctlSettings(reject_rate=0.0, reject_burst=4.0)
    refuser = Refuser(sink, settings, FlowctlMetrics(registry))
    syn = packet_in(ipv4_frame(6, SYN_SEGMENT))
    refuser.packet_in(syn)
    refuser.packet_in(packet_in(ipv4_frame(17, bytes(8))))
    refuser.packet_in(packet_in(ipv4_frame(6, SYN_SEGMENT), b"other"))
    refuser.packet_in(packet_in(b""))
    sink.takes = False
    refuser.packet_in(syn)
    sink.takes = True
    refuser.packet_in(syn)
    assert len(sink.written) == 2
    for result in ("tcp_reset", "icmp", "unknown", "unanswerable", "busy", "limited"):
        labels = {"result": result}
        assert registry.get_sample_value("dunlin_flowctl_rejects_total", labels) == 1, result


def test_token_bucket() -> None:
    """A burst at once, then the rate, never more than the burst after a pause."""
    bucket = TokenBucket(10.0, 3.0)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(100.125), bucket.take(100.125)] == [True, False]
    assert [bucket.take(1000.0) for _ in range(4)] == [True, True, True, False]
