"""`dunlin.pipeline` as the core's `Compiler`."""

from typing import Any

from dunlin import pipeline
from dunlin.events.intents import AnyIntent, SwitchIntent
from dunlin.openflow.flow import Program
from dunlin.openflow.wire_flow import canonical, canonical_group


class PipelineCompiler:
    """Programs in the form that a dump gives back, so that they compare with what is installed."""

    def is_shared(self, intent: AnyIntent) -> bool:
        """The same on every switch."""
        return pipeline.is_shared(intent)

    def context(self, intent: SwitchIntent) -> pipeline.SwitchContext:
        """What compiling needs to know of a switch."""
        return pipeline.switch_context(intent)

    def compile(self, intent: AnyIntent, context: Any) -> Program:
        """The canonical program of an intent."""
        return _canonical(pipeline.compile_intent(intent, context))

    def both(self, old: AnyIntent | None, new: AnyIntent | None, context: Any) -> Program:
        """Two versions of an intent of policy at once."""
        return _canonical(pipeline.compile_both(old, new, context))


def _canonical(program: Program) -> Program:
    return Program(
        tuple(map(canonical, program.flows)),
        tuple(map(canonical_group, program.groups)),
        program.meters,
    )
