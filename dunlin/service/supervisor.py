"""The tasks of one process: they live and die together."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger(__name__)


class Supervisor:
    """
    Runs named tasks; the first that raises, or ends although it should not, fails the process.

    Tasks may be added at any time, also by other tasks.
    """

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[Any], bool] = {}
        self._over = asyncio.Event()
        self.failure: str | None = None

    def add(
        self, name: str, work: Coroutine[Any, Any, Any], *, may_end: bool = False
    ) -> asyncio.Task[Any]:
        """Start a task; `may_end`: returning is no failure."""
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks[task] = may_end
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        may_end = self._tasks.pop(task)
        if task.cancelled():
            if not self._over.is_set():
                self._fail(f"task {task.get_name()} was cancelled by nobody we know")
            return
        error = task.exception()
        if error is not None:
            log.error("task failed", task=task.get_name(), exc_info=error)
            self._fail(f"task {task.get_name()} failed: {type(error).__name__}: {error}")
        elif not may_end and not self._over.is_set():
            log.error("task ended", task=task.get_name())
            self._fail(f"task {task.get_name()} ended, which it never should")

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or reason
        self._over.set()

    def stop(self) -> None:
        """Ask `wait` to return; idempotent, safe in a signal handler of the loop."""
        self._over.set()

    async def wait(self) -> None:
        """Until `stop` is called or a task has failed (`failure` then says which)."""
        await self._over.wait()

    async def cancel(self) -> None:
        """End every task and wait for it; what one raises meanwhile is logged and is a failure."""
        self._over.set()
        while self._tasks:
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            # Let the done callbacks run, which take tasks off the list.
            await asyncio.sleep(0)
