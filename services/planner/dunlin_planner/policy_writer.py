"""
Changes of policy, written so that a switch gets all of one or nothing of it (ADR 0020).

What has changed is written with the number of its change; then a commit says that this number is
complete; then tombstones, for what the commit has named as gone already.
"""

import asyncio
import time
from collections.abc import Mapping

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Bus, BusError
from dunlin.events.intents import AnyIntent, PolicyCommitIntent
from dunlin.service.intent_writer import IntentWriter
from dunlin_planner.core.policy.order import commit, numbered

log = structlog.get_logger(__name__)

POLICY_KINDS = (
    "policy", "policyclass", "policyport", "policypeer", "policynetwork", "policysubject",
    "policygeneration", "policycommit",
)  # fmt: skip
COMMIT_SUBJECT = subjects.intent("all", "policycommit", "all")
RETRY_S = 0.2


def is_policy(subject: str) -> bool:
    """The subject of an intent about policy."""
    return subjects.split(subject)[2] in POLICY_KINDS


class PolicyWriter:
    """
    The planner's intents of policy, while this replica has their shard.

    `committed`: the number of the last change; the next one is larger, whoever writes it.
    """

    def __init__(self, bus: Bus, writer: IntentWriter) -> None:
        self._bus = bus
        self._writer = writer
        self.committed = 0
        self._touched: set[str] = set()
        self._gone: set[str] = set()
        self._review = False

    def want(self, changes: Mapping[str, AnyIntent | None]) -> None:
        """Part of the next change; None: it is to go."""
        self._writer.want({subject: None for subject, i in changes.items() if i is None})
        self._writer.want(numbered(changes, self.committed + 1))
        self._touched |= changes.keys()
        self._gone |= {subject for subject, intent in changes.items() if intent is None}

    def forget(self) -> None:
        """The shard is somebody else's."""
        self._touched.clear()
        self._gone.clear()
        self._review = False

    async def adopt(self) -> None:
        """The shard is ours: go on behind the last commit; waits for as long as the bus is away."""
        while True:
            try:
                record = await self._bus.get_last(COMMIT_SUBJECT)
            except BusError as error:
                log.warning("the last commit is not known yet", reason=str(error))
                await asyncio.sleep(RETRY_S)
            else:
                break
        # What is not desired at its time would be withdrawn: who took over cannot know why it is.
        self._review = True
        if record is None or record.is_tombstone:
            return
        try:
            standing = wire.decode(record.data, PolicyCommitIntent)
        except (msgspec.DecodeError, ValueError) as error:
            log.exception("the last commit cannot be read", reason=str(error))
            standing = commit(time.time_ns() // 1_000_000, ())
        self.committed = standing.committed
        self._writer.want({COMMIT_SUBJECT: standing})

    async def write(self, *, complete: bool) -> None:
        """
        Write the change, if there is one.

        `complete`: what is not desired may go; else it stays for now.
        """
        gone = self._leaving() if complete else set()
        touched, self._touched = self._touched, set()
        if not gone and not self._writer.differs_any(touched - self._gone):
            return
        await self._writer.write()
        self.committed += 1
        ids = ("/".join(subjects.split(subject)[1:]) for subject in gone)
        self._writer.want({COMMIT_SUBJECT: commit(self.committed, ids)})
        await self._writer.write()

    def _leaving(self) -> set[str]:
        """What stands and is not desired, of what this replica has planned or taken over."""
        desired, standing = self._writer.desired, self._writer.standing
        candidates, self._gone = self._gone, set()
        if self._review:
            self._review = False
            candidates = {subject for subject in standing if is_policy(subject)}
        return {
            subject
            for subject in candidates
            if subject not in desired and (s := standing.get(subject)) and s.digest is not None
        }
