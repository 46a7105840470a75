"""rpc.flowctl.barrier.<node>: whether it is in force there."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import BusError, Subscription
from dunlin.events.rpc import BarrierReply, BarrierRequest, Failure
from dunlin_flowctl.handles import Handles

if TYPE_CHECKING:
    from dunlin_flowctl.runner import SwitchRunner

log = structlog.get_logger(__name__)

AGAIN_S = 0.5
MISSING_MAX = 100
TIMEOUT_MAX_S = 600.0


@contextlib.asynccontextmanager
async def barriers(handles: Handles, runner: "SwitchRunner") -> AsyncIterator[None]:
    """Answer barriers for the switch of `runner` meanwhile, as soon as there is a bus."""
    task = asyncio.create_task(_serve_at_last(handles, runner), name=f"barrier {runner.node}")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            await task.result().stop()


async def _serve_at_last(handles: Handles, runner: "SwitchRunner") -> Subscription:
    while True:
        try:
            return await _serve(handles, runner)
        except BusError as error:
            log.warning("barriers are not served yet", node=runner.node, error=str(error))
            await asyncio.sleep(AGAIN_S)


async def _serve(handles: Handles, runner: "SwitchRunner") -> Subscription:
    """Until the subscription is stopped."""

    async def handle(_subject: str, data: bytes) -> bytes:
        try:
            request = wire.decode(data, BarrierRequest)
        except (msgspec.DecodeError, ValueError) as error:
            handles.metrics.openflow_errors.labels("bad_barrier").inc()
            return wire.encode(Failure(reason=f"barrier request: {error}"))
        return wire.encode(await barrier(handles, runner, request))

    subject = subjects.rpc("flowctl", "barrier", runner.node)
    return await handles.bus.serve(subject, handle)


async def barrier(
    handles: Handles, runner: "SwitchRunner", request: BarrierRequest
) -> BarrierReply:
    """
    Waits until the switch holds every intent up to the revision asked for, or the time is over.

    Intents that were refused do not hold others up: they are in `missing` although `applied`.
    """

    def reached() -> bool:
        held = runner.prepared_revision if request.prepared else runner.revision
        return (
            handles.intents_epoch == request.epoch
            and held >= request.revision
            and (runner.swept or not request.swept)
        )

    def over() -> bool:
        return reached() or runner.switch is None

    timeout_s = min(max(request.timeout_ms, 0) / 1000, TIMEOUT_MAX_S)
    await runner.reached.wait_for(over, timeout_s)
    applied = reached()
    return BarrierReply(
        node=runner.node,
        applied=applied,
        revision=runner.revision,
        missing=_missing(handles, runner, request.revision),
        reason="" if applied else _why(handles, runner, request),
    )


def _missing(handles: Handles, runner: "SwitchRunner", revision: int) -> tuple[str, ...]:
    """Ids of intents up to `revision` that are not in force as asked, refused ones included."""
    switch, desired = runner.switch, handles.desired
    if switch is None or desired.switches.get(runner.node) is not switch:
        return ()
    lacking = [item for item in switch.lacking if _revision(handles, item) <= revision]
    wrong = [
        item
        for item, at, _ in desired.errors(runner.node)
        if at <= revision and item not in desired.unreadable
    ]
    return tuple(dict.fromkeys((*lacking, *wrong)))[:MISSING_MAX]


def _revision(handles: Handles, intent_id: str) -> int:
    version = handles.desired.intents.get(intent_id)  # type: ignore[call-overload]
    return version.revision if version is not None else 0


def _why(handles: Handles, runner: "SwitchRunner", request: BarrierRequest) -> str:
    switch = runner.switch
    if switch is None:
        return "the switch has just been given up"
    if handles.intents_epoch != request.epoch:
        return f"flowctl reads epoch {handles.intents_epoch!r} of the intents"
    if handles.desired.read < request.revision:
        return f"flowctl has read the intents up to {handles.desired.read}"
    if handles.desired.revision < request.revision and handles.desired.held.prepared:
        return "a change of policy is prepared: not every switch has said that it holds it"
    if handles.desired.revision < request.revision:
        return f"a change of policy is not complete: {len(handles.desired.held)} intents wait"
    if not switch.synced:
        return "the switch has not been compared with its intents yet"
    if runner.revision >= request.revision:
        return "something stands there that no intent explains"
    since = time.time() - runner.session.connected_at
    return f"{len(switch.lacking)} intents are not written yet; connected for {since:.0f} s"
