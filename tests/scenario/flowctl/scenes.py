"""One flowctl and one fake switch, with intents in force."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from dunlin.events.intents import AnyIntent
from dunlin.openflow.fake import FakeSwitch
from dunlin.openflow.fake_session import FakeOpenFlowSwitch
from tests.unit.flowctl.harness import Cluster, Flowctl, until

Scene = tuple[Cluster, Flowctl, FakeOpenFlowSwitch]


@asynccontextmanager
async def one_switch(intents: Iterable[AnyIntent], **settings: Any) -> AsyncIterator[Scene]:
    """Node n1, of dpid 0x11, whose switch holds these intents."""
    cluster = await Cluster().start()
    await cluster.intend(*intents)
    await cluster.claim()
    flowctl = await Flowctl(cluster, **settings).start()
    fake = FakeOpenFlowSwitch(FakeSwitch(dpid=0x11))
    switch = asyncio.create_task(fake.connect("127.0.0.1", flowctl.port))
    await flowctl.synced("n1")
    try:
        yield cluster, flowctl, fake
    finally:
        await flowctl.stop()
        await asyncio.wait({switch})


@asynccontextmanager
async def restarted(flowctl: Flowctl, fake: FakeOpenFlowSwitch) -> AsyncIterator[None]:
    """The switch of n1 goes, comes back empty, and has been served again."""
    fake.close()
    await until(lambda: not flowctl.handles.runners, "the switch is away")
    fake.switch.restart()
    again = FakeOpenFlowSwitch(fake.switch)
    switch = asyncio.create_task(again.connect("127.0.0.1", flowctl.port))
    await flowctl.synced("n1")
    try:
        yield
    finally:
        again.close()
        await asyncio.wait({switch})
