"""Answers `policy explain` from the intents, in a thread: sessions and leases never wait for it."""

import asyncio

from dunlin.explain.answer import Answer
from dunlin.explain.policy import explain
from dunlin.explain.question import parse
from dunlin.explain.world import Version, World
from dunlin_flowctl.handles import Handles
from dunlin_flowctl.views import newest

WAITING_MAX = 4


class TooBusy(Exception):
    """More questions wait than will be answered soon."""


class Explainer:
    """One question at a time, of all intents that this replica has read."""

    def __init__(self, handles: Handles) -> None:
        self._handles = handles
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def ask(self, source: str, destination: str, port: str) -> Answer:
        """
        Who lets a new connection pass.

        Raises:
            BadQuestion: it cannot be understood, or names what is not there.
            TooBusy: others are asking, too many.
        """
        question = parse(source, destination, port)
        if self._waiting >= WAITING_MAX:
            raise TooBusy(f"{self._waiting} questions wait already: ask again")
        self._waiting += 1
        try:
            async with self._turn:
                versions = [
                    Version(version.intent, version.revision)
                    for version in self._handles.desired.intents.values()
                ]
                held = self._held()
                return await asyncio.to_thread(lambda: explain(World(versions, held), question))
        finally:
            self._waiting -= 1

    def _held(self) -> dict[str, int]:
        """Up to which revision each switch holds the intents; 0: nothing is known."""
        epoch = self._handles.intents_epoch
        states = {node: newest(self._handles, node) for node in self._handles.desired.nodes()}
        return {
            node: applied.revision if applied and applied.epoch == epoch else 0
            for node, applied in states.items()
        }
