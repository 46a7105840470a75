"""What the core needs of a pipeline."""

from typing import Any, Protocol

from dunlin.events.intents import AnyIntent, SwitchIntent
from dunlin.openflow.flow import Program


class Compiler(Protocol):
    """`dunlin.pipeline`, or a stand-in."""

    @property
    def version(self) -> bytes:
        """Names what makes programs: another one may make another program of the same intent."""

    def digest(self, intent: AnyIntent) -> bytes:
        """Of all of an intent that its program depends on."""

    def is_shared(self, intent: AnyIntent) -> bool:
        """Its program is the same for every switch and needs no context."""

    def context(self, intent: SwitchIntent) -> Any:
        """What compiling needs to know of a switch."""

    def compile(self, intent: AnyIntent, context: Any) -> Program:
        """The program of an intent; `context` None for shared ones."""

    def both(self, old: AnyIntent | None, new: AnyIntent | None, context: Any) -> Program:
        """Of two versions of an intent of policy at once; None: it does not exist."""
