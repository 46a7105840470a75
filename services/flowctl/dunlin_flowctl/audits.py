"""Which switch is audited when: one at a time, and in a part of the time."""

import asyncio
import time

from dunlin_flowctl.changes import Changes
from dunlin_flowctl.handles import Handles
from dunlin_flowctl.runner import SwitchRunner

LOOK_S = 5.0
"""The longest sleep; switches come and go meanwhile."""
TURN_S = 60.0
"""A switch that takes longer lets the next one begin."""


class Auditor:
    """
    Gives switches their turn to be compared with their intents, the most overdue first.

    After each the next one waits, so that audits take at most `audit_share` of the time. With many
    large switches that is less often than `audit_interval_s` says; changes come first.
    """

    def __init__(self, handles: Handles) -> None:
        self._handles = handles

    def overdue_s(self) -> float:
        """How late the audit of the most overdue switch is, in seconds; 0: none is."""
        runner = self._next()
        if runner is None or runner.changes is None:
            return 0.0
        return max(0.0, time.monotonic() - runner.changes.next_audit)

    async def run(self) -> None:
        """For ever."""
        while True:
            runner, now = self._next(), time.monotonic()
            if runner is None or runner.changes is None:
                await asyncio.sleep(min(LOOK_S, self._handles.settings.audit_interval_s))
            elif (wait_s := runner.changes.next_audit - now) > 0:
                await asyncio.sleep(min(wait_s, LOOK_S))
            else:
                await self._turn(runner, runner.changes)
                await asyncio.sleep(self.pause_s(time.monotonic() - now))

    def pause_s(self, spent_s: float) -> float:
        """How long no audit begins after one of `spent_s` seconds."""
        return spent_s * (1 / self._handles.settings.audit_share - 1)

    async def _turn(self, runner: SwitchRunner, changes: Changes) -> None:
        """One audit, whatever becomes of it."""
        changes.audit_due = True
        # Whatever happens, it is not the first one for some time.
        changes.next_audit = time.monotonic() + self._handles.settings.audit_interval_s
        runner.signal.notify()
        await runner.reached.wait_for(
            lambda: runner.changes is not changes or not changes.audit_due, TURN_S
        )

    def _next(self) -> SwitchRunner | None:
        """The most overdue switch of those that may be written to."""
        chosen: SwitchRunner | None = None
        first = float("inf")
        for runner in self._handles.runners.values():
            changes = runner.changes
            if changes is None or not changes.switch.synced or not runner.may_write(changes):
                continue
            if changes.next_audit < first:
                chosen, first = runner, changes.next_audit
        return chosen
