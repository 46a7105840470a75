"""What all parts of flowctl share."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from dunlin.bus.base import Bus
from dunlin.events.facts import SwitchFact
from dunlin.events.state import Applied
from dunlin.watermarks import Epochs, Watermarks
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.denials import Denials
from dunlin_flowctl.encode import ProgramCache
from dunlin_flowctl.level import Signal, Slots
from dunlin_flowctl.metrics import FlowctlMetrics
from dunlin_flowctl.ownership import Ownership

if TYPE_CHECKING:
    from dunlin_flowctl.adapters.session import Session
    from dunlin_flowctl.publish import Publisher
    from dunlin_flowctl.runner import SwitchRunner

DUMPS = 8
"""
Dumps at one time.

A hundred switches that connect at once would each wait for all others' dumps to be read: in that
time they hear nothing from here, take this replica for dead, and begin anew.
"""
DUMP_S = 10.0
"""A switch that is slower lets the next one begin."""


@dataclass
class Handles:
    """
    `caught_up`: the intents' initial state has been read, in this epoch: switches may be written.

    `sessions` by dpid, `runners` by node (switches that this replica owns now), `applied` by node
    (of all replicas), `facts`: switch facts by node. `moved` is notified when anything but
    a switch's own progress changes. `dumps`: turns to read all that a switch holds;
    `compiling`: to make all that one should hold.
    """

    settings: FlowctlSettings
    metrics: FlowctlMetrics
    bus: Bus
    desired: Desired
    ownership: Ownership
    cache: ProgramCache = field(default_factory=ProgramCache)
    watermarks: Watermarks = field(default_factory=Watermarks)
    caught_up: bool = False
    facts_epoch: str = ""
    intents_epoch: str = ""
    sessions: "dict[int, Session]" = field(default_factory=dict)
    runners: "dict[str, SwitchRunner]" = field(default_factory=dict)
    applied: dict[str, Applied] = field(default_factory=dict)
    facts: dict[str, SwitchFact] = field(default_factory=dict)
    moved: Signal = field(default_factory=Signal)
    compiling: asyncio.Lock = field(default_factory=asyncio.Lock)
    dumps: Slots = field(default_factory=lambda: Slots(DUMPS, DUMP_S))
    publisher: "Publisher | None" = None
    _state: tuple[bool, bool] = (False, False)

    def __post_init__(self) -> None:
        self.denials = Denials(self.desired, self.settings, self.metrics)

    @property
    def epochs(self) -> Epochs:
        """The current lives of the fact and the intent stream; "" while not known."""
        return Epochs(self.facts_epoch, self.intents_epoch)

    @property
    def may_delete(self) -> bool:
        """What no intent explains does not exist: see the contracts, "When may flowctl delete?"."""
        if not (self.caught_up and self.facts_epoch and self.intents_epoch):
            return False
        needed = self.watermarks.complete(self.epochs)
        return needed is not None and self.desired.read >= needed

    def wake(self) -> None:
        """Something moved: everybody looks again."""
        self.moved.notify()
        for runner in self.runners.values():
            runner.signal.notify()
            runner.reached.notify()

    def read_on(self) -> None:
        """Streams were read further: switches only look where that changes what they may do."""
        caught_up, might_delete = self._state
        self._state = (self.caught_up, self.may_delete)
        if self.caught_up and not caught_up:
            self.wake()
            return
        # A watermark is often read before the intents that it is about: that changes nothing for
        # a switch that holds what it should and nothing else.
        sweep = self.may_delete and not might_delete
        self.moved.notify()
        for runner in self.runners.values():
            if sweep and runner.unswept:
                runner.signal.notify()
            runner.reached.notify()

    def changed(self, node: str) -> None:
        """The state of one switch is worth publishing."""
        if self.publisher is not None:
            self.publisher.mark(node)


def now_ms() -> int:
    """Unix milliseconds."""
    return int(time.time() * 1000)
