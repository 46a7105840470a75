"""Taking a switch's word for what it holds, instead of reading all of it. ADR 0046, 0048."""

import asyncio
import time

from dunlin_flowctl.adapters.dump import Word
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.core.source import Source
from dunlin_flowctl.core.switch import Switch, Then
from dunlin_flowctl.handles import Handles
from dunlin_flowctl.ownership import Held

SLICE_S = 0.01
"""After so long at compiling the loop turns."""


def state_of(word: Word, desired: Desired, switch: Switch) -> Then | None:
    """The state that it names; None: none that is known here now."""
    if desired.switches.get(switch.node) is not switch or desired.releasing:
        return None
    then = desired.known(switch, word.digests)
    own = switch.own.totals.fixed if switch.made else Source.of(word.digests.source).flows
    return then if then is not None and then.shared.fixed + own == word.fixed else None


async def made(handles: Handles, switch: Switch, held: Held) -> bool:
    """
    What a switch should hold of its own is compiled now; False: it is not ours any more.

    One switch at a time, and others have their turn meanwhile.
    """

    def ours() -> bool:
        return held.valid and handles.desired.switches.get(switch.node) is switch

    if not switch.made:
        async with handles.compiling:
            started = time.monotonic()
            for _ in handles.desired.compiling(switch) if ours() else ():
                if time.monotonic() - started > SLICE_S:
                    await asyncio.sleep(0)
                    started = time.monotonic()
    return ours()
