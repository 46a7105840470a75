"""Streams in, sessions in; everything meets in `Handles`."""

import asyncio
import gc
import time

import msgspec
import structlog

from dunlin import subjects, wire
from dunlin.bus.base import Batch, Record
from dunlin.events.facts import SwitchFact
from dunlin.events.intents import AnyIntent
from dunlin.events.intents import intent_id as make_id
from dunlin.events.state import Applied, Progress
from dunlin.model.ids import IntentId, format_dpid
from dunlin.service.metrics import Metrics
from dunlin_flowctl.adapters.listener import Listener
from dunlin_flowctl.adapters.session import Session, SessionClosed
from dunlin_flowctl.audits import Auditor
from dunlin_flowctl.conntrack import udp_key
from dunlin_flowctl.core.desired import IntentVersion
from dunlin_flowctl.core.switch import Moment
from dunlin_flowctl.handles import Handles
from dunlin_flowctl.publish import Publisher
from dunlin_flowctl.runner import SwitchRunner

log = structlog.get_logger(__name__)

SLICE_S = 0.01
"""After so long at one batch the loop turns: echoes and leases do not wait for 4,096 intents."""

SWITCHES = ".switch."
"""In the subject of a switch intent."""

BAD_INPUT = (msgspec.DecodeError, msgspec.ValidationError, ValueError)


class Shell:
    """Reads the three streams and serves sessions."""

    def __init__(self, handles: Handles, common: Metrics) -> None:
        self._handles = handles
        self._common = common
        self.publisher = Publisher(handles)
        self.auditor = Auditor(handles)
        self.listener = Listener(handles.settings, handles.metrics, self.serve)

    # --- streams ----------------------------------------------------------------------------------

    async def read_intents(self) -> None:
        """For ever."""
        async for batch in self._handles.bus.follow(subjects.INTENTS_STREAM):
            await self._intents(batch)

    async def _intents(self, batch: Batch) -> None:
        handles = self._handles
        if batch.reset or batch.epoch != handles.intents_epoch:
            log.info("intent stream", epoch=batch.epoch, before=handles.intents_epoch)
            handles.desired.forget()
            handles.caught_up = False
            handles.intents_epoch = batch.epoch
            handles.wake()
        started = time.monotonic()
        busy: set[str] = set()
        for record in batch.records:
            busy |= self._intent(record)
            while handles.desired.releasing:
                busy |= handles.desired.release()
                started = await _turn(started)
            if time.monotonic() - started > SLICE_S:
                self._start(busy)
                started = await _turn(started)
        self._start(busy)
        handles.desired.read_up_to(batch.seq)
        handles.metrics.revision.set(batch.seq)
        if batch.caught_up and not handles.caught_up:
            handles.caught_up = True
            handles.desired.held.caught_up()
            # What has been read stays: the garbage collector need not look at it again and again.
            gc.freeze()
            log.info("intents read", revision=batch.seq, intents=len(handles.desired.intents))
        if any(SWITCHES in record.subject for record in batch.records):
            # Whose a switch is may have changed.
            handles.wake()
        handles.read_on()

    def _start(self, busy: set[str]) -> None:
        """These nodes' switches have something to do; empties `busy`."""
        for node in busy:
            if node in self._handles.runners:
                self._handles.runners[node].start()
        busy.clear()

    def _intent(self, record: Record) -> set[str]:
        """Returns the nodes whose switch has something to do."""
        desired = self._handles.desired
        intent_id = intent_id_of(record.subject)
        moment = Moment(record.seq, record.time_ms)
        if intent_id is None:
            self._bad("intent", "subject", record, "not the subject of an intent")
            return set()
        if record.is_tombstone:
            self._about_to_change(intent_id)
            return desired.delete(intent_id, moment)
        try:
            intent: AnyIntent = wire.decode(record.data, AnyIntent)  # type: ignore[arg-type]
        except BAD_INPUT as error:
            self._bad("intent", "parse", record, str(error))
            desired.cannot_read(
                intent_id, record.seq, f"its newest version does not parse: {error}"
            )
            return set()
        if intent.id != intent_id:
            self._bad("intent", "subject", record, f"holds intent {intent.id}")
            desired.cannot_read(intent_id, record.seq, f"its subject holds intent {intent.id}")
            return set()
        self._about_to_change(intent_id)
        return desired.upsert(IntentVersion(intent, record.seq, record.time_ms))

    def _about_to_change(self, intent_id: IntentId) -> None:
        """Connections that a switch has of a ServicePort or hostPort are known by what it was."""
        if udp_key(intent_id) is not None:
            for runner in self._handles.runners.values():
                runner.changes_now(intent_id)

    async def read_facts(self) -> None:
        """The epoch of the facts, and which switches there are; for ever."""
        handles = self._handles
        filters = [subjects.facts_of("switch")]
        async for batch in handles.bus.follow(subjects.FACTS_STREAM, filters):
            if batch.reset or batch.epoch != handles.facts_epoch:
                handles.facts.clear()
                handles.facts_epoch = batch.epoch
            for record in batch.records:
                self._fact(record)
            handles.wake()

    def _fact(self, record: Record) -> None:
        name = subjects.split(record.subject)[-1]
        if record.is_tombstone:
            self._handles.facts.pop(name, None)
            return
        try:
            fact = wire.decode(record.data, SwitchFact)
        except BAD_INPUT as error:
            self._bad("switch", "parse", record, str(error))
            return
        self._handles.facts[fact.name] = fact

    async def read_state(self) -> None:
        """Watermarks, and the acknowledgements of all replicas; for ever."""
        handles = self._handles
        epoch = ""
        async for batch in handles.bus.follow(subjects.STATE_STREAM):
            claimed = batch.reset or batch.epoch != epoch
            if claimed:
                epoch = batch.epoch
                handles.watermarks.forget()
                handles.applied.clear()
                self.publisher.forget()
            for record in batch.records:
                claimed |= self._status(record)
            # Acknowledgements change nothing for switches: all of them would look at each one's.
            if claimed:
                handles.read_on()
            else:
                handles.moved.notify()

    def _status(self, record: Record) -> bool:
        """Returns whether it was a claim."""
        handles = self._handles
        what, *rest = subjects.split(record.subject)
        try:
            if what == "applied":
                self._applied(rest[0], record)
            elif record.is_tombstone:
                handles.watermarks.retract(rest[0], rest[1])
            else:
                handles.watermarks.claim(wire.decode(record.data, Progress))
        except BAD_INPUT as error:
            self._bad(what, "parse", record, str(error))
        return what != "applied"

    def _applied(self, node: str, record: Record) -> None:
        if record.is_tombstone:
            self._handles.applied.pop(node, None)
        else:
            # Most of them are this replica's own, which need not be read again.
            own = self.publisher.sent(node, record.data)
            applied = own or wire.decode(record.data, Applied)
            self._handles.applied[node] = applied
            if applied.owner != self._handles.settings.replica:
                self.publisher.contradicted(node)

    def _bad(self, kind: str, reason: str, record: Record, error: str) -> None:
        self._common.bad_input(kind, reason)
        log.error("message left out", subject=record.subject, seq=record.seq, error=error)

    # --- sessions ---------------------------------------------------------------------------------

    async def serve(self, session: Session) -> None:
        """One session that has shaken hands, until it ends."""
        handles = self._handles
        older = handles.sessions.get(session.dpid)
        handles.sessions[session.dpid] = session
        logger = log.bind(dpid=format_dpid(session.dpid), peer=session.peer)
        logger.info("switch connected")
        if older is not None and not older.closed:
            logger.warning("a switch with this dpid was connected already", other=older.peer)
            older.close("replaced", f"by {session.peer}")
        session.on_closed(handles.moved.notify)
        reading = asyncio.create_task(session.run(), name=f"read {session.peer}")
        try:
            await self._drive(session)
        except SessionClosed:
            logger.debug("session over")
        finally:
            session.close("done")
            if handles.sessions.get(session.dpid) is session:
                del handles.sessions[session.dpid]
            self.listener.report_end(session, await reading)

    async def _drive(self, session: Session) -> None:
        """As the switch of a node, or as a stranger, as the intents say."""
        handles = self._handles
        while not session.closed:
            node = handles.desired.node_of(session.dpid)
            if node is not None:
                await SwitchRunner(handles, session, node).run()
            if session.closed:
                return
            if handles.desired.node_of(session.dpid) is None:
                self._check_strangers()
                await handles.moved.wait_for(
                    lambda: session.closed or handles.desired.node_of(session.dpid) is not None,
                    30.0,
                )

    def _check_strangers(self) -> None:
        """Raises SessionClosed when too many; before the intents are read nobody is one."""
        handles = self._handles
        strangers = sum(1 for dpid in handles.sessions if handles.desired.node_of(dpid) is None)
        if handles.caught_up and strangers > handles.settings.unknown_max:
            raise SessionClosed("too_many_unknown", f"{strangers} switches without switch intent")

    def count_switches(self) -> dict[str, int]:
        """Switches by state."""
        handles = self._handles
        connected = set(handles.sessions)
        known = {dpid for dpid in connected if handles.desired.node_of(dpid) is not None}
        return {
            "owned": len(handles.runners),
            "standby": max(0, len(known) - len(handles.runners)),
            "unknown": len(connected - known),
            "absent": max(0, len(handles.desired.nodes()) - len(known)),
        }


async def _turn(started: float) -> float:
    """Let the loop turn after a slice of work that began then; when the present slice began."""
    if time.monotonic() - started <= SLICE_S:
        return started
    await asyncio.sleep(0)
    return time.monotonic()


def intent_id_of(subject: str) -> IntentId | None:
    """The intent whose versions are published there."""
    tokens = subjects.split(subject)
    if len(tokens) != 4 or tokens[0] != "intent":
        return None
    return make_id(*tokens[1:])
