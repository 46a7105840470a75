"""`dunlin wait`: everything that the Kubernetes API held when asked is in force on every switch."""

import asyncio
import time

import msgspec

from dunlin import subjects, wire
from dunlin.bus.base import BusError, BusUnavailable, NoResponder
from dunlin.events.rpc import (
    BarrierReply,
    BarrierRequest,
    Failure,
    MissingObject,
    SwitchWait,
    Synced,
    SyncRequest,
    WaitReply,
    WaitRequest,
)
from dunlin.model.ids import IntentId
from dunlin.watermarks import SERVICES
from dunlin_flowctl.barrier import TIMEOUT_MAX_S, barrier
from dunlin_flowctl.handles import Handles

RETRY_S = 0.1


class Waiter:
    """Serves `rpc.flowctl.wait`; any replica can."""

    def __init__(self, handles: Handles) -> None:
        self._handles = handles

    async def serve(self) -> None:
        """Answer requests until the bus closes; retries while there is no bus."""
        while True:
            try:
                await self._handles.bus.serve(
                    subjects.rpc("flowctl", "wait"), self._handle, queue="flowctl"
                )
            except BusError:
                await asyncio.sleep(RETRY_S)
            else:
                return

    async def _handle(self, _subject: str, data: bytes) -> bytes:
        try:
            request = wire.decode(data, WaitRequest)
        except (msgspec.DecodeError, ValueError) as error:
            return wire.encode(Failure(reason=f"wait request: {error}"))
        return wire.encode(await self.wait(request.timeout_ms / 1000))

    async def wait(self, timeout_s: float) -> WaitReply:
        """At most `timeout_s` seconds (and 600)."""
        deadline = time.monotonic() + min(max(timeout_s, 0.0), TIMEOUT_MAX_S)
        synced = await self._sync(deadline)
        if isinstance(synced, str):
            return WaitReply(applied=False, stage="watcher", reason=synced)
        revision = await self._intents(synced, deadline)
        if revision is None:
            return self._behind(synced)
        nodes = sorted({*self._handles.facts, *self._handles.desired.nodes()})
        switches = await asyncio.gather(*(self._switch(node, revision, deadline) for node in nodes))
        applied = all(switch.applied for switch in switches)
        return WaitReply(
            applied=applied,
            stage="switches",
            reason="" if applied else "not in force on every switch",
            fact_seq=synced.fact_seq,
            revision=revision,
            switches=tuple(switches),
        )

    async def _sync(self, deadline: float) -> Synced | str:
        """Ask the watcher; the reason if it does not answer in time."""
        subject = subjects.rpc("watcher", "sync")
        reason = "no time"
        while (left := deadline - time.monotonic()) > 0:
            request = SyncRequest(timeout_ms=max(1, int(left * 1000)))
            try:
                data = await self._handles.bus.request(
                    subject, wire.encode(request), timeout_s=left
                )
                reply: Synced | Failure = wire.decode(data, Synced | Failure)  # type: ignore[arg-type]
            except NoResponder:
                reason = "no watcher answers"
            except (BusUnavailable, msgspec.DecodeError, ValueError) as error:
                reason = str(error)
            else:
                if isinstance(reply, Synced):
                    return reply
                reason = reply.reason
                if not reply.retry:
                    return reason
            await asyncio.sleep(min(RETRY_S, max(0.0, deadline - time.monotonic())))
        return f"the watcher has not published everything: {reason}"

    async def _intents(self, synced: Synced, deadline: float) -> int | None:
        """The newest intent that the facts lead to; None when time is over."""
        handles = self._handles

        def reached() -> bool:
            return (
                handles.facts_epoch == synced.fact_epoch
                and handles.watermarks.complete(handles.epochs) is not None
                and not handles.watermarks.behind(handles.epochs, synced.fact_seq)
            )

        if not await handles.moved.wait_for(reached, deadline - time.monotonic()):
            return None
        covered = [
            handles.watermarks.covering(service, handles.epochs, synced.fact_seq) or 0
            for service in SERVICES
        ]
        return max(covered)

    def _behind(self, synced: Synced) -> WaitReply:
        handles = self._handles
        behind = handles.watermarks.behind(handles.epochs, synced.fact_seq)
        if handles.facts_epoch != synced.fact_epoch:
            reason = f"flowctl reads epoch {handles.facts_epoch!r} of the facts"
        elif behind:
            reason = "; ".join(behind)
        else:
            reason = "ipam and planner have not claimed to be complete"
        return WaitReply(applied=False, stage="intents", reason=reason, fact_seq=synced.fact_seq)

    async def _switch(self, node: str, revision: int, deadline: float) -> SwitchWait:
        """One switch, here or at another replica; asked again until time is over."""
        reply, reason = None, "no flowctl owns the switch: it is not connected"
        while reply is None or not reply.applied:
            left = deadline - time.monotonic()
            if left <= 0 and (reply is not None or reason != ""):
                break
            request = BarrierRequest(
                node=node,
                revision=revision,
                epoch=self._handles.intents_epoch,
                timeout_ms=max(0, int(left * 1000)),
                swept=True,
            )
            try:
                reply = await self._ask(request, left)
                reason = reply.reason
            except NoResponder:
                await asyncio.sleep(min(RETRY_S, max(0.0, left)))
            except (BusError, msgspec.DecodeError, ValueError) as error:
                reason = str(error)
                await asyncio.sleep(min(RETRY_S, max(0.0, left)))
        return self._result(node, reply, reason)

    async def _ask(self, request: BarrierRequest, left_s: float) -> BarrierReply:
        runner = self._handles.runners.get(request.node)
        if runner is not None:
            return await barrier(self._handles, runner, request)
        # The owner answers when time is over; the reply needs a moment more.
        data = await self._handles.bus.request(
            subjects.rpc("flowctl", "barrier", request.node),
            wire.encode(request),
            timeout_s=max(left_s, 0.0) + 1.0,
        )
        reply: BarrierReply | Failure = wire.decode(data, BarrierReply | Failure)  # type: ignore[arg-type]
        if isinstance(reply, Failure):
            raise BusUnavailable(reply.reason)
        return reply

    def _result(self, node: str, reply: BarrierReply | None, reason: str) -> SwitchWait:
        missing = reply.missing if reply is not None else ()
        in_force = reply is not None and reply.applied and not missing
        return SwitchWait(
            node=node,
            applied=in_force,
            revision=reply.revision if reply is not None else 0,
            reason="" if in_force else reason or "some intents were refused",
            missing=tuple(
                MissingObject(intent=item, object=self._object(item)) for item in missing
            ),
        )

    def _object(self, intent_id: str) -> str:
        version = self._handles.desired.intents.get(IntentId(intent_id))
        return version.intent.object if version is not None else ""
