"""One switch that this replica owns: compare with its dump, write what changes, audit."""

import time

import structlog

from dunlin.bus.base import BusError
from dunlin.events.state import Applied, AppliedError
from dunlin.model.ids import IntentId
from dunlin.openflow import codec, messages
from dunlin.openflow.cookie import is_ours
from dunlin.pipeline.layout import DENY_USERDATA
from dunlin_flowctl.adapters.session import Refusal, Session, SessionClosed
from dunlin_flowctl.barrier import barriers
from dunlin_flowctl.changes import Changes
from dunlin_flowctl.core.switch import Switch
from dunlin_flowctl.handles import Handles, now_ms
from dunlin_flowctl.level import Signal
from dunlin_flowctl.meters import NotMaster
from dunlin_flowctl.ownership import Held
from dunlin_flowctl.refuse import Refuser

log = structlog.get_logger(__name__)

ERRORS_MAX = 100
PAUSE_S = 1.0
"""Before trying to own a switch again after it did not work."""

CLAIM_DELAY_S = 0.3
"""A claim that made a switch refuse ours has been read by then."""

LOOK_S = 5.0
"""The longest sleep of a runner that has nothing to do."""


class SwitchRunner:
    """
    Owns `node`'s switch while the session lives and the claim stands.

    Changes are taken together, at the switch's own pace: the slower it is, the more they coalesce.
    `signal`: there may be work. `reached`: the switch may hold more than before, for who waits.
    """

    def __init__(self, handles: Handles, session: Session, node: str) -> None:
        self.handles = handles
        self.session = session
        self.node = node
        self.changes: Changes | None = None
        self.signal = Signal()
        self.reached = Signal()
        self._master_since_ms = 0
        self._removed_by_others = False
        self._idle: Held | None = None
        """While the task waits for work: what it holds."""
        self._refuser = Refuser(session, handles.settings, handles.metrics)
        self._log = log.bind(node=node, peer=session.peer)

    # --- owning -----------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """The session is still the one of the switch of `node`."""
        desired, sessions = self.handles.desired, self.handles.sessions
        return (
            not self.session.closed
            and sessions.get(self.session.dpid) is self.session
            and desired.node_of(self.session.dpid) == self.node
        )

    async def run(self) -> None:
        """Until the session ends or its dpid means another node. Raises SessionClosed."""
        self.session.on_closed(self.signal.notify)
        while self.wanted():
            try:
                await self.session.become_slave()
                await self._hold()
            except (NotMaster, Refusal, BusError) as error:
                reason = type(error).__name__.lower()
                self.handles.metrics.openflow_errors.labels(reason).inc()
                self._log.warning("cannot own the switch now", error=str(error))
                await self.signal.wait_for(lambda: not self.wanted(), PAUSE_S)

    async def _hold(self) -> None:
        dpid = self.session.dpid
        async with self.handles.ownership.hold(dpid, self.wanted, self.signal) as held:
            if held is not None:
                await self._become_master(held)
                await self._own(held)

    async def _become_master(self, held: Held) -> None:
        try:
            await self.session.set_role("master", held.fencing)
        except Refusal as refusal:
            # A newer claim may be on its way to us.
            await self.signal.wait_for(lambda: not held.valid, CLAIM_DELAY_S)
            if not held.certain:
                raise NotMaster(str(refusal)) from refusal
            # The claim is the newest: the switch remembers a stream's life that is over.
            await self._outbid(held)

    async def _outbid(self, held: Held) -> None:
        reply = await self.session.request(
            lambda xid: codec.encode_role_request("nochange", 0, xid), messages.RoleReply
        )
        generation = max(reply.generation_id + 1 & 0xFFFF_FFFF_FFFF_FFFF, held.fencing)
        self._log.warning(
            "the switch remembers a newer generation than the claim has",
            remembered=reply.generation_id,
            claim=held.fencing,
        )
        self.handles.metrics.openflow_errors.labels("stale_generation").inc()
        try:
            await self.session.set_role("master", generation)
        except Refusal as refusal:
            raise NotMaster(str(refusal)) from refusal

    async def _own(self, held: Held) -> None:
        switch = self.handles.desired.begin(self.node)
        if switch is None:
            return
        self.changes = Changes(self.handles, self.session, switch, held, self.signal, self.reached)
        self._removed_by_others = False
        self._master_since_ms = now_ms()
        self.handles.runners[self.node] = self
        self.session.unasked = self._unasked
        self._log.info("owning switch", generation=held.fencing)
        try:
            async with barriers(self.handles, self):
                while held.valid and self._current() and self.wanted():
                    await self._turn(self.changes, held)
        finally:
            self.session.unasked = lambda _message: None
            await self._give_up(held)

    async def _give_up(self, held: Held) -> None:
        last = self.applied(connected=False)
        if self.changes is not None:
            self.changes.stale_udp.stop()
        if self._current():
            self.handles.desired.unmanage(self.node)
        self.changes = None
        self.signal.notify()
        self.reached.notify()
        if self.handles.runners.get(self.node) is self:
            del self.handles.runners[self.node]
            if held.certain and self.handles.publisher is not None:
                await self.handles.publisher.goodbye(last)
        self._log.info("switch given up", claimed_by_other=not held.valid)

    def _current(self) -> bool:
        """The intents still mean the switch that is being written to."""
        switch = self.switch
        return switch is not None and self.handles.desired.switches.get(self.node) is switch

    def changes_now(self, changed: IntentId) -> None:
        """An intent is about to change."""
        if self.changes is not None:
            self.changes.stale_udp.changes(changed)

    # --- working ----------------------------------------------------------------------------------

    async def _turn(self, changes: Changes, held: Held) -> None:
        """The next thing to do, or wait for one."""
        now = time.monotonic()
        writing = self.may_write(changes)
        if writing and (cause := self._cause_of_sync(changes)):
            self._removed_by_others = False
            await changes.sync(cause)
        elif writing and changes.switch.pending:
            await changes.apply()
        else:
            pause_s = changes.not_before - now
            wait_s = min(max(0.01, pause_s), LOOK_S) if pause_s > 0 else LOOK_S
            self._idle = held
            try:
                await self.signal.wait_for(lambda: self._has_work(changes, held), wait_s)
            finally:
                self._idle = None
            while changes.unanswered:
                # The session ends when the switch owes the answer too long.
                await self.signal.wait_for(lambda: not self._unanswered(changes), LOOK_S)
            changes.settle()

    def start(self) -> None:
        """
        There is something to write: at once, if nothing stands in the way; else the task does it.

        So a change is on its way to all switches before the tasks of a hundred have had a turn.
        """
        changes, held = self.changes, self._idle
        if changes is None or held is None or self.session.closed:
            self.signal.notify()
        elif changes.busy:
            changes.overlooked = True
        elif not (self._may_start(changes, held) and changes.start()):
            self.signal.notify()

    def _may_start(self, changes: Changes, held: Held) -> bool:
        """There is nothing to do but to write what is pending."""
        return (
            bool(changes.switch.pending)
            and held.valid
            and self._current()
            and self.wanted()
            and self.may_write(changes)
            and not self._cause_of_sync(changes)
        )

    def _unanswered(self, changes: Changes) -> bool:
        if self.session.closed:
            raise SessionClosed("done", "the session ended")
        changes.overlooked |= changes.unanswered
        return changes.unanswered

    def _has_work(self, changes: Changes, held: Held) -> bool:
        if self._unanswered(changes):
            return False
        if changes.busy:
            return True
        if not (held.valid and self._current() and self.wanted()):
            return True
        pending = changes.switch.pending or self._cause_of_sync(changes)
        return bool(pending) and self.may_write(changes)

    def may_write(self, changes: Changes) -> bool:
        """Everything is known that this needs, and no pause after a failure."""
        if self.handles.desired.releasing:
            return False
        return self.handles.caught_up and time.monotonic() >= changes.not_before

    def _cause_of_sync(self, changes: Changes) -> str:
        """Why a dump is needed; "" if it is not."""
        switch = changes.switch
        if not switch.synced:
            return "connect"
        if switch.suspect or (switch.partial and not self.handles.desired.held.incomplete):
            return "repair"
        if (switch.leftovers or not changes.swept) and self.handles.may_delete:
            return "complete"
        if self._removed_by_others:
            return "flow_removed"
        return "audit" if changes.audit_due else ""

    def _unasked(self, message: messages.Message) -> None:
        """Packets to refuse or to log; a flow of ours that somebody else removed: look at once."""
        if isinstance(message, messages.PacketIn):
            if message.userdata.startswith(DENY_USERDATA):
                self.handles.denials.packet_in(self.node, message)
            else:
                self._refuser.packet_in(message)
            return
        if not isinstance(message, messages.FlowRemoved) or self.changes is None:
            return
        key = message.flow.key
        if key in self.changes.expected:
            self.changes.expected.discard(key)
        elif is_ours(message.flow.cookie) and self._current():
            owner = self.handles.desired.owner(self.node, key)
            if owner is not None:
                self._log.warning("flow removed by somebody else", intent=owner, why=message.reason)
                self._removed_by_others = True
                self.signal.notify()

    # --- what others ask --------------------------------------------------------------------------

    @property
    def switch(self) -> Switch | None:
        """What is known of the switch; None while it is not owned."""
        return self.changes.switch if self.changes is not None else None

    @property
    def revision(self) -> int:
        """The switch holds every intent up to here (but those with errors)."""
        switch = self.switch
        return switch.revision(self.handles.desired.revision) if switch is not None else 0

    @property
    def prepared_revision(self) -> int:
        """The same, but what is prepared counts as held; what waits for its change does not."""
        switch, desired = self.switch, self.handles.desired
        if switch is None:
            return 0
        return switch.revision(desired.read if desired.held.prepared else desired.revision)

    @property
    def unswept(self) -> bool:
        """It waits to be allowed to delete."""
        changes = self.changes
        return changes is not None and (changes.switch.leftovers or not changes.swept)

    @property
    def swept(self) -> bool:
        """Nothing stands on the switch that no intent explains."""
        return self.changes is not None and not self.unswept

    @property
    def owns(self) -> bool:
        """Nobody else's claim on the switch has been read."""
        return self.changes is not None and self.changes.owned

    def applied(self, *, connected: bool = True) -> Applied:
        """The acknowledgement of the switch, as of now."""
        switch, desired = self.switch, self.handles.desired
        errors = desired.errors(self.node) if self._current() else []
        return Applied(
            node=self.node,
            dpid=self.session.dpid,
            revision=self.revision,
            epoch=self.handles.intents_epoch,
            connected=connected,
            flows=switch.flows if switch else 0,
            groups=switch.groups if switch else 0,
            pending=len(switch.lacking) if switch else 0,
            errors=tuple(
                AppliedError(intent=item, revision=revision, reason=reason)
                for item, revision, reason in errors[:ERRORS_MAX]
            ),
            programming_ms=self.changes.programming_ms if self.changes else None,
            sync_ms=self.changes.sync_ms if self.changes else None,
            prepared=desired.prepared(switch) if switch else 0,
            owner=self.handles.settings.replica,
            master_since_ms=self._master_since_ms,
            at_ms=now_ms(),
        )
