"""`dunlin.pipeline` as the core's `Compiler`."""

import hashlib
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

import dunlin
import dunlin_flowctl
from dunlin import pipeline
from dunlin.events.intents import AnyIntent, SwitchIntent
from dunlin.openflow.flow import Program
from dunlin.openflow.wire_flow import canonical, canonical_group
from dunlin.service.intent_writer import digest_of


class PipelineCompiler:
    """Programs in the form that a dump gives back, so that they compare with what is installed."""

    def is_shared(self, intent: AnyIntent) -> bool:
        """The same on every switch."""
        return pipeline.is_shared(intent)

    @cached_property
    def version(self) -> bytes:
        """Of all of Dunlin's sources that are in this process: any may decide what is made."""
        return version_of(
            Path(path) for package in (dunlin, dunlin_flowctl) for path in package.__path__
        )

    def digest(self, intent: AnyIntent) -> bytes:
        """Of what `compile` makes a program from."""
        return digest_of(intent)

    def context(self, intent: SwitchIntent) -> pipeline.SwitchContext:
        """What compiling needs to know of a switch."""
        return pipeline.switch_context(intent)

    def compile(self, intent: AnyIntent, context: Any) -> Program:
        """The canonical program of an intent."""
        return _canonical(pipeline.compile_intent(intent, context))

    def both(self, old: AnyIntent | None, new: AnyIntent | None, context: Any) -> Program:
        """Two versions of an intent of policy at once."""
        return _canonical(pipeline.compile_both(old, new, context))


def version_of(packages: Iterable[Path]) -> bytes:
    """A digest of every source file below these, and of its name."""
    content = hashlib.blake2b(digest_size=16)
    for root in packages:
        for file in sorted(root.rglob("*.py")):
            text = file.read_bytes()
            content.update(f"{file.relative_to(root)} {len(text)} ".encode() + text)
    return content.digest()


def _canonical(program: Program) -> Program:
    return Program(
        tuple(map(canonical, program.flows)),
        tuple(map(canonical_group, program.groups)),
        program.meters,
    )
