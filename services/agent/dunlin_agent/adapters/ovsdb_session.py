"""
One session with ovsdb-server, in a thread of its own, for use from asyncio.

The IDL of the `ovs` package keeps a copy of the tables that we ask for. Its poll loop sleeps in
poll(2) until the server, a caller, or a timer has something to say: nothing here polls at an
interval. Callers hand in functions that run in that thread, for rows may be touched only there.
"""

import asyncio
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

import ovs.db.idl
import ovs.jsonrpc
import ovs.poller
import ovs.stream
import structlog
from ovs.db.idl import ROW_CREATE, ROW_DELETE, Idl, Transaction

T = TypeVar("T")

RECONNECT_MIN_MS: Final = 100
RECONNECT_MAX_MS: Final = 1000
# A transaction that meets a change of somebody else, or a lost session, is computed and sent again.
ATTEMPTS_MAX: Final = 20

log = structlog.get_logger(__name__)


class OvsdbError(Exception):
    """ovsdb-server refused a transaction, or cannot be reached in time."""


class Tables:
    """
    The IDL's copy of the tables, and what it has no words for: rows by name, versions of rows.

    Reading a column converts it each time (tens of microseconds): with hundreds of Pods that is to
    be done for rows that changed, not for all.
    """

    def __init__(self, tables: dict[str, Any]) -> None:
        """`tables`: Idl.tables."""
        self._tables = tables
        self._named: dict[tuple[str, str], Any] = {}
        self._versions: dict[UUID, int] = {}

    def __getitem__(self, table: str) -> Any:
        """The IDL's table, with `rows` by UUID."""
        return self._tables[table]

    def named(self, table: str, name: str) -> Any | None:
        """The row of that name, as ovsdb-server last told it."""
        row = self._named.get((table, name))
        return row if row is not None and self._tables[table].rows.get(row.uuid) is row else None

    def version(self, row: Any) -> int:
        """Another number after each change of the row."""
        return self._versions.get(row.uuid, 0)

    def note(self, event: str, row: Any) -> None:
        """Take one notification of the IDL in."""
        if event == ROW_DELETE:
            self._versions.pop(row.uuid, None)
            return
        self._versions[row.uuid] = self.version(row) + 1
        if event == ROW_CREATE and "name" in row._table.columns:  # noqa: SLF001 - Row has no other
            self._named[row._table.name, row.name] = row  # noqa: SLF001 - no other way


Change = Callable[[Tables, Transaction], T]


class _Idl(Idl):
    """An Idl that tells `Tables` what has changed."""

    view: Tables | None = None

    def notify(self, event: str, row: Any, updates: Any = None) -> None:
        """Called by Idl.run() for each row that changed."""
        del updates
        if self.view is not None:
            self.view.note(event, row)


class _Job:
    """A transaction to make: computed, sent, perhaps again, then answered."""

    def __init__(self, change: Change[Any], reply: Callable[[Any], None]) -> None:
        self.change = change
        self.reply = reply
        self.attempts = 0
        self.result: Any = None
        self.transaction: Transaction | None = None


class _Waiter:
    """A condition that is looked at after every change."""

    def __init__(self, condition: Callable[[Tables], Any], reply: Callable[[Any], None]) -> None:
        self.condition = condition
        self.reply = reply


class OvsdbSession:
    """Start it, use it, close it; it reconnects by itself until then."""

    def __init__(
        self,
        remote: str,
        columns: Mapping[str, Sequence[str]],
        schema: dict[str, Any],
        on_connection: Callable[[bool], None] | None = None,
    ) -> None:
        """
        Nothing is opened before `start`.

        Args:
            remote: as for ovs-vsctl --db, `unix:/run/openvswitch/db.sock`.
            columns: the tables and columns to keep a copy of.
            schema: of the database, as JSON; see `fetch_schema`.
            on_connection: called in the event loop when the copy becomes current or stops being so.
        """
        helper = ovs.db.idl.SchemaHelper(schema_json=schema)
        for table, names in columns.items():
            helper.register_columns(table, list(names))
        self._idl: Any = _Idl(remote, helper)  # type: ignore[no-untyped-call]
        self._tables = self._idl.view = Tables(self._idl.tables)
        # The default of 8 s is for servers far away; ours is on this machine. The package has no
        # public word for it.
        self._idl._session.reconnect.set_backoff(RECONNECT_MIN_MS, RECONNECT_MAX_MS)  # noqa: SLF001
        self._wakeup = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._inbox: deque[Callable[[], None]] = deque()
        self._jobs: deque[_Job] = deque()
        self._waiters: list[_Waiter] = []
        self._on_connection = on_connection
        self._connected = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ovsdb", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def connected(self) -> bool:
        """The copy of the tables is current."""
        return self._connected

    async def start(self, timeout_seconds: float = 10.0) -> None:
        """
        Connect and wait for the first copy of the tables.

        Raises:
            OvsdbError: not within `timeout_seconds`.
        """
        self._loop = asyncio.get_running_loop()
        self._thread.start()
        await self.wait_for(lambda _tables: True, timeout_seconds, "the first copy of the tables")

    async def close(self) -> None:
        """Stop the thread; transactions under way are answered with OvsdbError."""
        if not self._thread.is_alive():
            return
        self._stopping = True
        self._wake()
        await asyncio.to_thread(self._thread.join)
        os.close(self._wakeup)

    async def read(self, function: Callable[[Tables], T]) -> T:
        """Apply `function` to the tables as they are now; waits while there is no session."""
        (value,) = await self.wait_for(lambda tables: (function(tables),), 10.0, "a session")
        return value

    async def wait_for(
        self, condition: Callable[[Tables], T | None], timeout_seconds: float | None, what: str
    ) -> T:
        """
        Wait until `condition` gives something true, and return it.

        It is looked at now and after every change, in the session's thread; it must be quick.
        `timeout_seconds` None: for ever.

        Raises:
            OvsdbError: not within `timeout_seconds`, naming `what`.
            Exception: whatever `condition` raises.
        """
        future, reply = self._future()
        waiter = _Waiter(condition, reply)
        self._send(lambda: self._waiters.append(waiter))
        try:
            message = f"OVSDB: waited {timeout_seconds or 0:g} s for {what}"
            result: T = await _within(timeout_seconds, future, message)
            return result
        finally:
            if not future.done() or future.cancelled():
                self._send(lambda: self._forget(waiter))

    async def transact(self, change: Change[T], timeout_seconds: float = 10.0) -> T:
        """
        Make the changes that `change` makes to the rows, all or none.

        `change` may run several times, each on the newest rows; its last result is returned.

        Raises:
            OvsdbError: refused, or not within `timeout_seconds` (it may still happen then).
            Exception: whatever `change` raises; nothing is changed then.
        """
        future, reply = self._future()
        job = _Job(change, reply)
        self._send(lambda: self._jobs.append(job))
        message = f"OVSDB: no answer to a transaction within {timeout_seconds:g} s"
        result: T = await _within(timeout_seconds, future, message)
        return result

    # --- between the threads ----------------------------------------------------------------------

    def _future(self) -> tuple["asyncio.Future[Any]", Callable[[Any], None]]:
        """A future, and the function by which the session's thread completes it."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def complete(value: Any) -> None:
            if future.done():
                return
            if isinstance(value, Exception):
                future.set_exception(value)
            else:
                future.set_result(value)

        return future, lambda value: _call_in(loop, complete, value)

    def _send(self, action: Callable[[], None]) -> None:
        self._inbox.append(action)
        self._wake()

    def _wake(self) -> None:
        if self._thread.is_alive():
            os.eventfd_write(self._wakeup, 1)

    # --- in the session's thread ------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._step()
        finally:
            closed = OvsdbError("OVSDB: the session was closed")
            for reply in [job.reply for job in self._jobs] + [w.reply for w in self._waiters]:
                reply(closed)
            self._idl.close()

    def _step(self) -> None:
        """Take what came in, do what can be done, sleep until there is more."""
        self._idl.run()
        self._note_connection()
        while self._inbox:
            self._inbox.popleft()()
        if self._connected:
            self._advance()
            self._look()
        poller = ovs.poller.Poller()
        self._idl.wait(poller)
        poller.fd_wait(self._wakeup, select.POLLIN)
        if self._jobs and self._jobs[0].transaction is not None:
            self._jobs[0].transaction.wait(poller)
        poller.block()
        self._drain()

    def _drain(self) -> None:
        try:
            os.eventfd_read(self._wakeup)
        except BlockingIOError:
            return

    def _note_connection(self) -> None:
        connected = self._is_current()
        if connected == self._connected:
            return
        self._connected = connected
        log.info("ovsdb session", connected=connected)
        if self._on_connection is not None and self._loop is not None:
            _call_in(self._loop, self._on_connection, connected)

    def _is_current(self) -> bool:
        """The session stands and its first copy has come; Idl has no public word for it."""
        session = self._idl._session  # noqa: SLF001 - as said
        return bool(self._idl.state == Idl.IDL_S_MONITORING and session.is_connected())

    def _look(self) -> None:
        """Answer the waiters whose condition holds."""
        for waiter in tuple(self._waiters):
            try:
                value = waiter.condition(self._tables)
            except Exception as error:  # noqa: BLE001 - it belongs to the waiter, not to this thread
                value = error
            if value:
                self._waiters.remove(waiter)
                waiter.reply(value)

    def _forget(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _advance(self) -> None:
        """Bring the first transaction forward; one is under way at a time, in the order given."""
        while self._jobs:
            job = self._jobs[0]
            outcome = self._commit(job)
            if outcome is None:
                return
            self._jobs.popleft()
            job.reply(outcome[0])

    def _commit(self, job: _Job) -> tuple[Any] | None:
        """The answer to give, in a tuple; None while there is none."""
        if job.transaction is None:
            job.attempts += 1
            job.transaction = Transaction(self._idl)
            try:
                job.result = job.change(self._tables, job.transaction)
            except Exception as error:  # noqa: BLE001 - it belongs to the caller, not to this thread
                job.transaction.abort()
                return (error,)
        status = job.transaction.commit()
        if status == Transaction.INCOMPLETE:
            return None
        if status in (Transaction.SUCCESS, Transaction.UNCHANGED):
            return (job.result,)
        if status == Transaction.TRY_AGAIN and job.attempts < ATTEMPTS_MAX:
            job.transaction = None
            return self._commit(job) if self._is_current() else None
        details = job.transaction.get_error()
        return (OvsdbError(f"OVSDB refused a transaction: {status}: {details}"),)


async def _within(
    timeout_seconds: float | None, future: "asyncio.Future[Any]", message: str
) -> Any:
    """
    What `future` gives, and the future cancelled if that takes too long; None: for ever.

    Raises:
        OvsdbError: `message`.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            return await future
    except TimeoutError as error:
        raise OvsdbError(message) from error


def _call_in(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: Any) -> None:
    """call_soon_threadsafe, for a loop that may have ended meanwhile."""
    try:
        loop.call_soon_threadsafe(function, *args)
    except RuntimeError:
        log.warning("ovsdb: the event loop ended before an answer")


def fetch_schema(remote: str, timeout_seconds: float = 10.0) -> dict[str, Any]:
    """
    The schema of the database Open_vSwitch, from the server; blocks.

    Raises:
        OvsdbError: no server answered within `timeout_seconds`.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return _ask_schema(remote)
        except OSError as error:
            if time.monotonic() >= deadline:
                raise OvsdbError(f"OVSDB: no schema from {remote}: {error}") from error
            time.sleep(RECONNECT_MIN_MS / 1000)  # back-off of a reconnect, not synchronisation


def _ask_schema(remote: str) -> dict[str, Any]:
    error, stream = ovs.stream.Stream.open_block(ovs.stream.Stream.open(remote))
    if error:
        raise OSError(error, os.strerror(error))
    connection = ovs.jsonrpc.Connection(stream)
    try:
        request = ovs.jsonrpc.Message.create_request("get_schema", ["Open_vSwitch"])
        error, reply = connection.transact_block(request)
        if error or reply.error:
            raise OSError(error, str(reply.error if reply else os.strerror(error)))
        result: dict[str, Any] = reply.result
        return result
    finally:
        connection.close()
