"""Writes to one switch: what is pending, or the difference from a dump."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

import structlog

from dunlin.events.intents import ServicePortIntent
from dunlin.model.ids import IntentId
from dunlin.openflow.flow import Meter
from dunlin.pipeline.layout import DENY_METER
from dunlin.service.kubeproxy import families_of
from dunlin_flowctl.adapters.dump import Dump, dump, word_of
from dunlin_flowctl.adapters.session import CommitResult, Session
from dunlin_flowctl.conntrack import StaleUdp
from dunlin_flowctl.core.digest import UNKNOWN, digest_flows
from dunlin_flowctl.core.held import POLICY_COOKIES, is_policy
from dunlin_flowctl.core.program import FlowKey, describe_key
from dunlin_flowctl.core.switch import Switch, Work
from dunlin_flowctl.core.sync import Rules, SyncPlan, cookies_of, plan_sync
from dunlin_flowctl.encode import COMMIT_XID, OPEN_XID, Bundle, Unencodable
from dunlin_flowctl.handles import Handles, now_ms
from dunlin_flowctl.level import Signal
from dunlin_flowctl.meters import Meters, NotMaster, left_by, wanted_by
from dunlin_flowctl.ownership import Held
from dunlin_flowctl.told import made, state_of
from dunlin_flowctl.writer import (
    Plan,
    at_once,
    bundles,
    digests_after,
    plan_fresh_switch,
    plan_work,
)

log = structlog.get_logger(__name__)

BACK_OFF_FIRST_S = 0.5
BACK_OFF_MAX_S = 30.0
AUDITS = frozenset({"audit", "flow_removed"})
"""Causes of a comparison in which a difference is drift."""
PHASES = ("groups_put", "flows_put", "flows_deleted", "groups_deleted", "digests")


class Changes:
    """
    One switch while this replica owns it; one piece of work at a time.

    `swept`: the last comparison might delete. `not_before`, `next_audit`: monotonic seconds.
    `audit_due`: it is this switch's turn to be audited (`audits.Auditor`).
    `expected`: flows whose removal the switch will announce because it was asked for.
    `unanswered`: the switch owes an answer to what `start` has written; `overlooked`: somebody
    looked for work meanwhile.
    """

    def __init__(
        self,
        handles: Handles,
        session: Session,
        switch: Switch,
        held: Held,
        signal: Signal,
        reached: Signal,
    ) -> None:
        self._handles = handles
        self._session = session
        self._held = held
        self._signal = signal
        self._reached = reached
        self._failures = 0
        self._log = log.bind(node=switch.node, peer=session.peer)
        self.switch = switch
        self.swept = False
        self.not_before = 0.0
        self.next_audit = 0.0
        self.audit_due = False
        self.unanswered = False
        self.overlooked = False
        self._unfinished: tuple[Work, Bundle, CommitResult] | None = None
        self.expected: set[FlowKey] = set()
        self.programming_ms: float | None = None
        self.sync_ms: float | None = None
        self.meters = Meters(session, switch.node, handles.metrics)
        self._wanted_meters: dict[int, Meter] = {}
        self.stale_udp = StaleUdp(session, switch.node, handles.desired, handles.metrics)

    async def apply(self) -> None:
        """Write everything that is pending."""
        switch = self.switch
        if not await made(self._handles, switch, self._held):
            return
        work = self._take()
        if switch.suspect:
            switch.back(work)
            return
        plan = self._planned(work)
        await self.meters.put(wanted_by(work.parts.values()))
        if await self._write(work, plan):
            if not plan.deferred:
                await self.meters.drop(left_by(work.parts.values()))
            self._hold(work, plan)

    def _take(self, *, retry: bool = False) -> Work:
        desired = self._handles.desired
        self.stale_udp.taken()
        return self.switch.take(
            lambda item: desired.get(self.switch.node, item), time.monotonic(), retry=retry
        )

    def _planned(self, work: Work) -> Plan:
        handles, switch = self._handles, self.switch
        return plan_work(
            handles.desired,
            switch,
            work,
            may_delete=handles.may_delete,
            certain=self._certain(
                work, explained=self.swept and not (switch.leftovers or switch.stray_groups)
            ),
            known=handles.cache.known,
        )

    def _certain(self, work: Work, *, explained: bool) -> bool:
        """
        With this work done the switch holds all that it should, and nothing else.

        `explained`: nothing stays there that no intent explains.
        """
        handles = self._handles
        whole = explained and not work.refused and not self.switch.partial
        return whole and handles.may_delete and handles.desired.certain(self.switch.node)

    def start(self) -> bool:
        """
        Write what is pending at once, in one bundle; its answer is seen to when it comes.

        False: nothing has happened, `apply` must do it (the session is busy, it takes more than
        one bundle, meters change, a dump is needed, …).
        """
        switch, handles = self.switch, self._handles
        if not switch.made:
            return False
        work = self._take()
        bundle = None
        concerned = self.meters.concerned(work.parts.values())
        if not switch.suspect and self._held.valid and not concerned:
            plan = self._planned(work)
            bundle = at_once(plan, handles.cache, handles.settings.bundle_max)
        if bundle is None or not self._begin(work, plan, bundle):
            switch.back(work)
            return False
        return True

    def _begin(self, work: Work, plan: Plan, bundle: Bundle) -> bool:
        started = time.monotonic()

        def done(result: CommitResult) -> None:
            self.unanswered = False
            if not result.applied or result.errors:
                self._unfinished = (work, bundle, result)
            else:
                self._wrote(plan, time.monotonic() - started)
                self._hold(work, plan)
            if self.overlooked or self.busy or self.switch.pending:
                self.overlooked = False
                self._signal.notify()

        if not self._session.try_commit(bundle, done):
            return False
        self.unanswered = True
        self.expected.update(plan.deleted_flows())
        return True

    @property
    def owned(self) -> bool:
        """The claim stands."""
        return self._held.valid

    @property
    def busy(self) -> bool:
        """What `start` has written is not done with."""
        return self.unanswered or self._unfinished is not None

    def settle(self) -> None:
        """What `start` has written and the switch refused is pending again. Raises NotMaster."""
        if self._unfinished is not None:
            (work, bundle, result), self._unfinished = self._unfinished, None
            self._failed(work, bundle, result, whole=True)

    def _hold(self, work: Work, plan: Plan) -> None:
        """All of this plan is on the switch."""
        self.switch.leftovers |= plan.deferred > 0
        self.switch.stray_groups |= plan.stray_groups
        self.switch.digests = plan.digests
        self._done(work)

    async def sync(self, cause: str) -> None:
        """Compare with a dump and write the difference."""
        switch = self.switch
        self.expected.clear()
        try:
            if cause == "connect" and await self._told():
                return
            if not await made(self._handles, switch, self._held):
                return
            async with self._handles.dumps.one():
                found = await self._look(cause)
            if found is None:
                return
            work, plan, swept = found
            await self.meters.put(self._wanted_meters.values())
            if await self._write(work, plan):
                if swept:
                    await self.meters.sweep(self._wanted_meters)
                switch.leftovers = plan.deferred > 0
                switch.stray_groups = plan.stray_groups
                self.swept = swept
                switch.synced = True
                switch.digests = plan.digests
                self.next_audit = time.monotonic() + self._jittered_interval()
                self._done(work)
                switch.flows, switch.groups = plan.holds
                self._handles.changed(self.switch.node)
            else:
                switch.suspect = True
        finally:
            self.audit_due = False
            self._reached.notify()

    async def _told(self) -> bool:
        """The switch says what it holds, and it is something that is known here."""
        handles, switch = self._handles, self.switch
        word = await word_of(self._session)
        self.meters.read(word.meters)
        if self.meters.of_pods or state_of(word, handles.desired, switch) is None:
            await made(handles, switch, self._held)
            if state_of(word, handles.desired, switch) is None:
                return False
        self._want_meters("connect")
        await self.meters.put(self._wanted_meters.values())
        # Intents may have changed meanwhile.
        then = state_of(word, handles.desired, switch)
        if then is None:
            return False
        switch.told(word.digests, then)
        self.swept = True
        # It is not known how long ago its last owner compared.
        self.next_audit = time.monotonic() + self._jittered_interval() * random.random()  # noqa: S311
        handles.metrics.audits.labels("told").inc()
        self._log.debug("the switch says what it holds", lacking=len(switch.pending))
        handles.changed(switch.node)
        await self.meters.sweep(self._wanted_meters)
        return True

    async def _look(self, cause: str) -> tuple[Work, Plan, bool] | None:
        """What differs from a dump; whether that includes deletes. None: not the time for it."""
        switch = self.switch
        held = await dump(self._session, self._handles.settings.dump_max)
        await self.meters.look()
        if self._handles.desired.switches.get(switch.node) is not switch:
            return None
        if self._handles.desired.releasing:
            # Half of a change: look again when all of it is there.
            switch.suspect = True
            return None
        switch.partial = self._handles.desired.held.incomplete
        switch.suspect = False
        switch.digests = held.digests
        work = self._take(retry=True)
        switch.suspect = False
        self._want_meters(cause)
        may_delete = self._handles.may_delete
        empty = not (held.flows or held.groups or work.refused or any(held.digests))
        if cause == "connect" and empty and not switch.partial:
            return work, self._fresh(cause, work), may_delete
        return work, await self._compared(work, held, cause, may_delete=may_delete), may_delete

    def _want_meters(self, cause: str) -> None:
        """All meters of this switch, as its flows are about to name them."""
        own = self.switch.own.effective.values()
        rate = self._handles.settings.deny_log_sample
        # Without this one the switch would send every packet that is denied.
        self._wanted_meters = {DENY_METER: Meter(DENY_METER, rate, rate)}
        self._wanted_meters |= {m.meter_id: m for part in own for m in part.meters.values()}
        differing = self.meters.differing(self._wanted_meters)
        if cause in AUDITS and differing:
            self._handles.metrics.drift.labels(self.switch.node, "meter").inc(differing)
            self._log.warning("drift", cause=cause, meters=differing)

    def _fresh(self, cause: str, work: Work) -> Plan:
        """Nothing stands there: everything, without a comparison."""
        handles = self._handles
        limit = handles.settings.bundle_max
        certain = self._certain(work, explained=True)
        plan = plan_fresh_switch(
            handles.desired, self.switch, handles.cache, limit, certain=certain
        )
        handles.metrics.audits.labels(cause).inc()
        self._log.info("an empty switch", messages=len(plan))
        return plan

    async def _compared(
        self,
        work: Work,
        held: Dump,
        cause: str,
        *,
        may_delete: bool,
    ) -> Plan:
        desired = self._handles.desired
        partial = self.switch.partial
        parts = [
            part
            for part in desired.parts(self.switch.node)
            if part.intent_id not in work.refused and not (partial and is_policy(part.intent_id))
        ]
        rules = Rules(
            may_delete=may_delete,
            remove_foreign=self._handles.settings.remove_foreign,
            protected=cookies_of({*work.refused, *desired.unreadable}),
            spared=POLICY_COOKIES if partial else frozenset(),
            changing=frozenset(work.parts),
            expired=held.expired,
        )
        # What is compared now; intents may change meanwhile.
        after = digests_after(desired, self.switch)
        plan = await asyncio.to_thread(plan_sync, parts, held.flows, held.groups, rules)
        self._report(plan, cause)
        explained = may_delete and not (plan.changes.deferred or plan.changes.stray_groups)
        if not self._certain(work, explained=explained):
            # What nobody changes is as it was said to be.
            after = UNKNOWN if len(plan.changes) else held.digests
        plan.changes.say(digest_flows(held.digests, after))
        return Plan(plan.changes, holds=(plan.flows, plan.groups), digests=after)

    def _jittered_interval(self) -> float:
        # Spreads load.
        return self._handles.settings.audit_interval_s * random.uniform(0.8, 1.2)  # noqa: S311

    def _report(self, plan: SyncPlan, cause: str) -> None:
        metrics = self._handles.metrics
        metrics.audits.labels(cause).inc()
        found = {kind: number for kind, number in plan.drift.items() if number}
        if plan.foreign:
            self._log.warning(
                "flows that are not Dunlin's",
                removed=self._handles.settings.remove_foreign and self._handles.may_delete,
                flows=[describe_key(flow.key) for flow in plan.foreign[:10]],
            )
        if cause in AUDITS:
            for kind, number in found.items():
                metrics.drift.labels(self.switch.node, kind).inc(number)
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

    async def _write(self, work: Work, plan: Plan) -> bool:
        """
        Write a plan; true once all of it is on the switch.

        Otherwise the work is pending again, but for the intents that were refused.
        """
        written, started = 0, time.monotonic()
        self.expected.update(plan.deleted_flows())
        limit = self._handles.settings.bundle_max
        try:
            async for bundle in (
                bundles(plan, self._handles.cache, limit, void=any(self.switch.digests))
                if len(plan)
                else nothing()
            ):
                if not self._held.valid:
                    raise NotMaster("another replica has claimed it")
                result = await self._session.commit(bundle)
                if bundle.void and result.applied:
                    self.switch.digests = UNKNOWN
                    continue
                if not result.applied or result.errors:
                    self._failed(work, bundle, result, whole=written == 0)
                    return False
                written += len(bundle)
        except Unencodable as error:
            reasons = {key: reason for key, reason in error.reasons.items() if key is not None}
            self._refuse(work, reasons, "unencodable", unsure=written > 0)
            if not reasons:
                self._back_off(f"cannot be written: {error}")
            return False
        self._wrote(plan, time.monotonic() - started if written else None)
        return True

    def _wrote(self, plan: Plan, seconds: float | None) -> None:
        """Account for it; `seconds` None: there was nothing to write."""
        if seconds is not None:
            self.sync_ms = seconds * 1000
            self._handles.metrics.kubeproxy.synced(seconds)
        self._count(plan)
        self._failures = 0

    def _count(self, plan: Plan) -> None:
        for changes in (plan.own, plan.shared):
            if changes is not None:
                for kind, phase in zip(PHASES, changes.phases, strict=True):
                    if phase:
                        self._handles.metrics.messages_of(kind).inc(len(phase))

    def _failed(self, work: Work, bundle: Bundle, result: CommitResult, *, whole: bool) -> None:
        """Who is to blame? They leave the work; nothing of an atomic bundle is on the switch."""
        if any(error.name == "OFPBRC_IS_SLAVE" for error in result.errors):
            raise NotMaster("the switch says so")
        reasons: dict[IntentId, str] = {}
        for error in result.errors:
            intent_id = bundle.intent_of(error.xid)
            if intent_id is not None:
                reasons.setdefault(intent_id, f"switch refused it: {error.name}")
        names = [e.name for e in result.errors if e.xid not in {OPEN_XID, COMMIT_XID}]
        self._refuse(work, reasons, "refused", unsure=result.applied or not whole)
        if not reasons:
            self._back_off(f"bundle refused: {names or [e.name for e in result.errors]}")

    def _refuse(
        self,
        work: Work,
        reasons: dict[IntentId, str],
        kind: str,
        *,
        unsure: bool,
    ) -> None:
        for intent_id, reason in reasons.items():
            self._handles.metrics.intent_errors.labels(kind).inc()
            self._log.error("intent refused", intent=intent_id, reason=reason)
        self.switch.refuse(work, reasons, time.monotonic())
        # Part of it may be there: only a dump tells.
        self.switch.suspect |= unsure
        self._handles.changed(self.switch.node)
        self._signal.notify()

    def _back_off(self, reason: str) -> None:
        """Nobody can be blamed: later, and after a look at the switch."""
        wait_s = min(BACK_OFF_MAX_S, BACK_OFF_FIRST_S * 2.0**self._failures)
        self._failures = min(self._failures + 1, 10)
        self.not_before = time.monotonic() + wait_s
        self.switch.suspect = True
        self._handles.metrics.openflow_errors.labels("bundle").inc()
        self._log.error("changes failed", reason=reason, again_in_s=wait_s)

    def _done(self, work: Work) -> None:
        """Acknowledged: account for every change in it."""
        self.stale_udp.written(work.parts)
        self.switch.done(work)
        now = now_ms()
        newest = 0
        for intent_id, moment in work.moments.items():
            start = moment.trigger_ms or moment.published_ms
            if not start:
                continue
            seconds = max(0, now - start) / 1000
            kind = intent_id.split("/", 2)[1]
            self._handles.metrics.programming_of(kind).observe(seconds)
            if kind == "service" and moment.trigger_ms is not None:
                self._programmed(intent_id, seconds)
            if moment.revision > newest:
                newest, self.programming_ms = moment.revision, seconds * 1000
        if work.moments:
            self._handles.changed(self.switch.node)
        self._reached.notify()

    def _programmed(self, intent_id: IntentId, seconds: float) -> None:
        """In kube-proxy's words; of a Service that is gone meanwhile nobody asks."""
        version = self._handles.desired.intents.get(intent_id)
        if version is not None and isinstance(version.intent, ServicePortIntent):
            self._handles.metrics.kubeproxy.programmed(families_of(version.intent), seconds)


async def nothing() -> AsyncIterator[Bundle]:
    """No bundle at all."""
    return
    yield
