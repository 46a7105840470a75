"""The meter of denied packets, before any flow that names it; and the packets themselves."""

from contextlib import AbstractAsyncContextManager

import pytest

from dunlin.openflow import fake as fakes
from dunlin.openflow.fake import Refused
from dunlin.openflow.fake_session import FakeSession
from dunlin.openflow.flow import Meter
from dunlin.openflow.messages import PacketIn
from dunlin.pipeline.layout import DENY_METER, DENY_USERDATA
from tests.scenario.flowctl.scenes import Scene, one_switch
from tests.unit.flowctl.harness import until
from tests.unit.flowctl.programs import endpoint_intent, switch_intent
from tests.unit.flowctl.test_denials import datagram

METER_MOD, BUNDLE_CONTROL = 29, 33


def scene() -> AbstractAsyncContextManager[Scene]:
    """Node n1 with a Pod, in force."""
    return one_switch(
        (switch_intent("n1"), endpoint_intent("n1", "a", 4)),
        deny_log_sample=7,
        audit_interval_s=0.2,
    )


async def test_the_meter_comes_first_and_comes_back() -> None:
    """Before the first bundle; and a meter that somebody deletes is there again with an audit."""
    async with scene() as (_cluster, _flowctl, fake):
        assert fake.session is not None
        order = [kind for kind in fake.session.received if kind in (METER_MOD, BUNDLE_CONTROL)]
        assert order[0] == METER_MOD
        assert fake.switch.flows
        assert fake.switch.meters == {DENY_METER: Meter(DENY_METER, 7, 7)}
        fake.switch.meters.clear()
        await until(lambda: bool(fake.switch.meters), "the audit sets the meter")


async def test_a_switch_without_meters_is_programmed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is counted, and everything else goes on."""

    def refuse(_session: FakeSession, _data: bytes, _xid: int) -> list[bytes]:
        raise Refused("OFPBRC_BAD_TYPE", "no meters here")

    assert "OFPBRC_BAD_TYPE" in fakes.ERRORS
    monkeypatch.setattr(FakeSession, "_meter", refuse)
    async with scene() as (_cluster, flowctl, fake):
        assert fake.switch.flows
        assert flowctl.sample("dunlin_openflow_errors_total", reason="meter") >= 1


async def test_a_denied_packet_is_not_refused() -> None:
    """Its userdata leads it to the log; flowctl answers nothing, whatever it holds."""
    async with scene() as (_cluster, flowctl, fake):
        for what in (b"Cnothing", b"", b"R"):
            packet = PacketIn(0, "action", 40, 0, 1, datagram(), (), DENY_USERDATA + what)
            flowctl.handles.sessions[0x11].unasked(packet)
        assert flowctl.sample("dunlin_flowctl_denials_total", result="unknown") == 3
        assert fake.session is not None
        assert fake.session.packets_out == []
