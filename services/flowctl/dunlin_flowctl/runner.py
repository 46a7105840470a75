"""One switch that this replica owns: compare with its dump, write what changes, audit."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

import structlog

from dunlin.events.state import Applied, AppliedError
from dunlin.model.ids import IntentId
from dunlin.openflow import codec, messages
from dunlin.openflow.cookie import is_ours
from dunlin.openflow.flow import Flow, Group
from dunlin_flowctl.adapters.session import CommitResult, Refusal, Session, SessionClosed
from dunlin_flowctl.barrier import serve_barrier
from dunlin_flowctl.core.program import FlowKey, describe_key
from dunlin_flowctl.core.switch import Switch, Work
from dunlin_flowctl.core.sync import Rules, SyncPlan, cookies_of, plan_sync
from dunlin_flowctl.encode import COMMIT_XID, OPEN_XID, Bundle, Unencodable
from dunlin_flowctl.level import Signal
from dunlin_flowctl.ownership import Held
from dunlin_flowctl.state import State, now_ms
from dunlin_flowctl.writer import Plan, bundles, plan_work

log = structlog.get_logger(__name__)

BACK_OFF_FIRST_S = 0.5
BACK_OFF_MAX_S = 30.0
AUDITS = frozenset({"audit", "flow_removed"})
"""Causes of a comparison in which a difference is drift."""


class NotMaster(Exception):
    """The switch has another master."""


class SwitchRunner:
    """
    Owns `node`'s switch while the session lives and the lease is held.

    Changes are taken together, at the switch's own pace: the slower it is, the more they coalesce.
    """

    def __init__(self, state: State, session: Session, node: str) -> None:
        self.state = state
        self.session = session
        self.node = node
        self.switch: Switch | None = None
        self.signal = Signal()
        self.programming_ms: float | None = None
        self.synced_with_deletes = False
        self._next_audit = 0.0
        self._cause = "connect"
        self._failures = 0
        self._not_before = 0.0
        self._deleted: set[FlowKey] = set()
        self._log = log.bind(node=node, peer=session.peer)

    # --- owning -----------------------------------------------------------------------------------

    def wanted(self) -> bool:
        """This session is still the one of this node's switch."""
        desired, sessions = self.state.desired, self.state.sessions
        return (
            not self.session.closed
            and sessions.get(self.session.dpid) is self.session
            and desired.node_of(self.session.dpid) == self.node
        )

    async def run(self) -> None:
        """Until the session ends or its dpid means another node. Raises SessionClosed."""
        self.session.on_closed(self.signal.notify)
        await self.session.become_slave()
        name = f"switch/{self.session.dpid:016x}"
        while self.wanted():
            async with self.state.ownership.hold(name, self.wanted, self.signal) as held:
                if held is None:
                    return
                try:
                    await self._become_master(held)
                    await self._own(held)
                except NotMaster as error:
                    self.state.metrics.openflow_errors.labels("not_master").inc()
                    self._log.warning("lost the switch to another master", error=str(error))
            if not self.session.closed:
                await self.session.become_slave()

    async def _become_master(self, held: Held) -> None:
        try:
            await self.session.set_role("master", held.fencing)
        except Refusal as refusal:
            if not held.valid:
                raise NotMaster(str(refusal)) from refusal
            # The lease is ours beyond doubt: the switch remembers a life of the lease bucket that is over.
            await self._outbid(held)

    async def _outbid(self, held: Held) -> None:
        reply = await self.session.request(
            lambda xid: codec.encode_role_request("nochange", 0, xid), messages.RoleReply
        )
        generation = max(reply.generation_id + 1 & 0xFFFF_FFFF_FFFF_FFFF, held.fencing)
        self._log.warning(
            "the switch remembers a newer generation than the lease has",
            remembered=reply.generation_id,
            lease=held.fencing,
        )
        self.state.metrics.openflow_errors.labels("stale_generation").inc()
        try:
            await self.session.set_role("master", generation)
        except Refusal as refusal:
            raise NotMaster(str(refusal)) from refusal

    async def _own(self, held: Held) -> None:
        switch = self.switch = self.state.desired.manage(self.node)
        if switch is None:
            return
        self._cause = "connect"
        self.state.runners[self.node] = self
        self.session.unasked = self._unasked
        self._log.info("owning switch", generation=held.fencing)
        serving = None
        try:
            serving = await serve_barrier(self.state, self)
            while held.valid and self._current(switch):
                await self._turn(switch, held)
        finally:
            self.session.unasked = lambda _message: None
            if self._current(switch):
                self.state.desired.unmanage(self.node)
            if serving is not None:
                await serving.stop()
            if self.state.runners.get(self.node) is self:
                del self.state.runners[self.node]
                if held.valid and self.state.publisher is not None:
                    await self.state.publisher.goodbye(self.applied(connected=False))
            self.switch = None
            self._log.info("switch given up", lease_lost=not held.valid)

    def _current(self, switch: Switch) -> bool:
        return self.state.desired.switches.get(self.node) is switch

    async def _turn(self, switch: Switch, held: Held) -> None:
        """The next thing to do, or wait for one."""
        now = time.monotonic()
        if self._may_write() and self._cause_of_sync(switch, now):
            await self._sync(switch, held)
        elif self._may_write() and switch.pending:
            await self._apply(switch, held)
        else:
            due = self._next_audit if self._not_before <= now else self._not_before
            await self.signal.wait_for(
                lambda: self._has_work(switch, held), max(0.01, min(due - now, 5.0))
            )

    def _has_work(self, switch: Switch, held: Held) -> bool:
        if self.session.closed:
            raise self._end()
        if not held.valid or not self._current(switch) or not self.wanted():
            return True
        now = time.monotonic()
        return self._may_write() and bool(switch.pending or self._cause_of_sync(switch, now))

    def _end(self) -> SessionClosed:
        return SessionClosed("done", "the session ended")

    def _may_write(self) -> bool:
        return self.state.caught_up and time.monotonic() >= self._not_before

    def _cause_of_sync(self, switch: Switch, now: float) -> str:
        """Why a dump is needed; "" if it is not."""
        if not switch.synced:
            return "connect"
        if switch.suspect:
            return "repair"
        if (switch.leftovers or not self.synced_with_deletes) and self.state.may_delete:
            return "complete"
        if self._cause == "flow_removed":
            return self._cause
        return "audit" if now >= self._next_audit else ""

    def _unasked(self, message: messages.Message) -> None:
        """A flow of ours that should be there was removed by somebody else: look at once."""
        if isinstance(message, messages.FlowRemoved) and is_ours(message.flow.cookie):
            if message.flow.key in self._deleted:
                self._deleted.discard(message.flow.key)
                return
            owner = self.state.desired.owner(self.node, message.flow.key)
            if owner is not None:
                self._log.warning("flow removed by somebody else", intent=owner, why=message.reason)
                self._cause = "flow_removed"
                self.signal.notify()

    # --- changes ----------------------------------------------------------------------------------

    async def _apply(self, switch: Switch, held: Held) -> None:
        """Write everything that is pending."""
        work = self._take(switch)
        if switch.suspect:
            switch.back(work)
            return
        plan = plan_work(self.state.desired, switch, work, may_delete=self.state.may_delete)
        if await self._write(switch, work, plan, held):
            switch.leftovers |= plan.deferred > 0
            switch.stray_groups |= plan.stray_groups
            self._done(switch, work)

    def _take(self, switch: Switch, *, retry: bool = False) -> Work:
        desired = self.state.desired
        return switch.take(
            lambda item: desired.get(self.node, item), time.monotonic(), retry=retry
        )

    async def _sync(self, switch: Switch, held: Held) -> None:
        """Compare with a dump and write the difference."""
        cause = self._cause_of_sync(switch, time.monotonic())
        self._cause = ""
        self._deleted.clear()
        flows, groups = await dump(self.session, self.state.settings.dump_max)
        if not self._current(switch):
            return
        switch.suspect = False
        work = self._take(switch, retry=True)
        switch.suspect = False
        may_delete = self.state.may_delete
        parts = [
            part
            for part in self.state.desired.parts(self.node)
            if part.intent_id not in work.refused
        ]
        rules = Rules(
            may_delete=may_delete,
            remove_foreign=self.state.settings.remove_foreign,
            protected=cookies_of({*work.refused, *self.state.desired.unreadable}),
            changing=frozenset(work.parts),
        )
        plan = await asyncio.to_thread(plan_sync, parts, flows, groups, rules)
        self._report(plan, cause)
        if await self._write(switch, work, Plan(plan.changes), held):
            switch.leftovers = plan.changes.deferred > 0
            switch.stray_groups = plan.changes.stray_groups
            self.synced_with_deletes = may_delete
            switch.synced = True
            self._next_audit = time.monotonic() + self._jittered_interval()
            self._done(switch, work)
            switch.flows, switch.groups = plan.flows, plan.groups
            self.state.changed(self.node)
        else:
            switch.suspect = True

    def _jittered_interval(self) -> float:
        return self.state.settings.audit_interval_s * random.uniform(0.8, 1.2)  # noqa: S311

    def _report(self, plan: SyncPlan, cause: str) -> None:
        metrics = self.state.metrics
        metrics.audits.labels(cause).inc()
        found = {kind: number for kind, number in plan.drift.items() if number}
        if plan.foreign:
            self._log.warning(
                "flows that are not Dunlin's",
                removed=self.state.settings.remove_foreign and self.state.may_delete,
                flows=[describe_key(flow.key) for flow in plan.foreign[:10]],
            )
        if cause in AUDITS:
            for kind, number in found.items():
                metrics.drift.labels(self.node, kind).inc(number)
        if found and cause in AUDITS:
            self._log.warning("drift", cause=cause, messages=len(plan.changes), **found)
        elif cause not in AUDITS:
            self._log.info(
                "compared with dump",
                cause=cause,
                messages=len(plan.changes),
                deletes_put_off=plan.changes.deferred,
                **found,
            )

    async def _write(self, switch: Switch, work: Work, plan: Plan, held: Held) -> bool:
        """
        Write a plan; true once all of it is on the switch. Otherwise the work is pending again,
        but for the intents that were refused.
        """
        written = 0
        self._deleted.update(plan.deleted_flows())
        limit = self.state.settings.bundle_max
        try:
            async for bundle in bundles(plan, self.state.cache, limit) if len(plan) else nothing():
                if not held.valid:
                    raise NotMaster("the lease ended")
                result = await self.session.commit(bundle)
                if not result.applied or result.errors:
                    self._failed(switch, work, bundle, result, whole=written == 0)
                    return False
                written += len(bundle)
        except Unencodable as error:
            reasons = {key: reason for key, reason in error.reasons.items() if key is not None}
            self._refuse(switch, work, reasons, "unencodable", unsure=written > 0)
            if not reasons:
                self._back_off(f"cannot be written: {error}")
            return False
        self._count(plan)
        self._failures = 0
        return True

    def _count(self, plan: Plan) -> None:
        for changes in (plan.own, plan.shared):
            if changes is not None:
                names = ("groups_put", "flows_put", "flows_deleted", "groups_deleted")
                for kind, phase in zip(names, changes.phases, strict=True):
                    if phase:
                        self.state.metrics.messages.labels(kind).inc(len(phase))

    def _failed(
        self, switch: Switch, work: Work, bundle: Bundle, result: CommitResult, *, whole: bool
    ) -> None:
        """Who is to blame? They leave the work; nothing of an atomic bundle is on the switch."""
        if any(error.name == "OFPBRC_IS_SLAVE" for error in result.errors):
            raise NotMaster("the switch says so")
        reasons: dict[IntentId, str] = {}
        for error in result.errors:
            intent_id = bundle.intent_of(error.xid)
            if intent_id is not None:
                reasons.setdefault(intent_id, f"switch refused it: {error.name}")
        names = [e.name for e in result.errors if e.xid not in {OPEN_XID, COMMIT_XID}]
        self._refuse(switch, work, reasons, "refused", unsure=result.applied or not whole)
        if not reasons:
            self._back_off(f"bundle refused: {names or [e.name for e in result.errors]}")

    def _refuse(
        self,
        switch: Switch,
        work: Work,
        reasons: dict[IntentId, str],
        kind: str,
        *,
        unsure: bool,
    ) -> None:
        for intent_id, reason in reasons.items():
            self.state.metrics.intent_errors.labels(kind).inc()
            self._log.error("intent refused", intent=intent_id, reason=reason)
        switch.refuse(work, reasons, time.monotonic())
        # Part of it may be there: only a dump tells.
        switch.suspect |= unsure
        self.state.changed(self.node)
        self.signal.notify()

    def _back_off(self, reason: str) -> None:
        """Nobody can be blamed: later, and after a look at the switch."""
        wait_s = min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        self._not_before = time.monotonic() + wait_s
        if self.switch is not None:
            self.switch.suspect = True
        self.state.metrics.openflow_errors.labels("bundle").inc()
        self._log.error("changes failed", reason=reason, again_in_s=wait_s)

    def _done(self, switch: Switch, work: Work) -> None:
        """Acknowledged: account for every change in it."""
        switch.done(work)
        now = now_ms()
        newest = 0
        for intent_id, moment in work.moments.items():
            start = moment.trigger_ms or moment.published_ms
            if not start:
                continue
            seconds = max(0, now - start) / 1000
            kind = intent_id.split("/", 2)[1]
            self.state.metrics.programming.labels(kind).observe(seconds)
            if kind == "service" and moment.trigger_ms is not None:
                self.state.metrics.kubeproxy.observe(seconds)
            if moment.revision > newest:
                newest, self.programming_ms = moment.revision, seconds * 1000
        if work.moments:
            self.state.changed(self.node)
        self.signal.notify()

    # --- what others ask --------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """The switch holds every intent up to here (but those with errors)."""
        return self.switch.revision(self.state.desired.revision) if self.switch else 0

    @property
    def swept(self) -> bool:
        """Nothing stands on the switch that no intent explains."""
        return self.switch is not None and self.synced_with_deletes and not self.switch.leftovers

    def applied(self, *, connected: bool = True) -> Applied:
        """This switch's acknowledgement, as of now."""
        switch, desired = self.switch, self.state.desired
        known = switch is not None and self._current(switch)
        return Applied(
            node=self.node,
            dpid=self.session.dpid,
            revision=self.revision,
            epoch=self.state.intents_epoch,
            connected=connected,
            flows=switch.flows if switch else 0,
            groups=switch.groups if switch else 0,
            pending=len(switch.lacking) if switch else 0,
            errors=tuple(
                AppliedError(intent=item, revision=revision, reason=reason)
                for item, revision, reason in (desired.errors(self.node) if known else ())[:100]
            ),
            programming_ms=self.programming_ms,
            owner=self.state.settings.replica,
            at_ms=now_ms(),
        )


async def nothing() -> AsyncIterator[Bundle]:
    """No bundle at all."""
    return
    yield


async def dump(
    session: Session, at_most: int
) -> tuple[dict[FlowKey, Flow], dict[int, Group]]:
    """
    Everything that the switch holds.

    Raises:
        SessionClosed: also when it has more than `at_most` flows or groups.
    """
    flows: dict[FlowKey, Flow] = {}
    groups: dict[int, Group] = {}
    async for part in session.replies(codec.encode_group_dump_request, messages.GroupDump):
        groups.update((group.group_id, group) for group in part.groups)
        _check_size(session, len(groups), at_most)
    async for rows in session.replies(codec.encode_flow_dump_request, messages.FlowDump):
        flows.update((row.flow.key, row.flow) for row in rows.entries)
        _check_size(session, len(flows), at_most)
    return flows, groups


def _check_size(session: Session, size: int, at_most: int) -> None:
    if size > at_most:
        error = SessionClosed("too_large", f"a dump of more than {at_most} entries")
        session.close(error.reason, str(error))
        raise error
