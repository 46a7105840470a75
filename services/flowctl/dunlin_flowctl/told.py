"""Taking a switch's word for what it holds, instead of reading all of it. ADR 0046."""

import asyncio
from typing import NamedTuple

from dunlin_flowctl.adapters.dump import count_fixed, digests_of
from dunlin_flowctl.adapters.session import Session
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.core.digest import Digests
from dunlin_flowctl.core.switch import Switch, Then


class Word(NamedTuple):
    """
    What a switch says of itself.

    `fixed`: how many flows of Dunlin's there are where nothing is learned. Some may have been lost,
    or added, since its last owner wrote to it.
    """

    digests: Digests
    fixed: int

    def state(self, desired: Desired, switch: Switch) -> Then | None:
        """The state that it names; None: none that is known here now, a dump has to tell."""
        if desired.switches.get(switch.node) is not switch or desired.releasing:
            return None
        then = desired.known(switch, self.digests)
        if then is None or then.shared.fixed + switch.own.totals.fixed != self.fixed:
            return None
        return then


async def word_of(session: Session) -> Word:
    """Ask for it. Raises SessionClosed, Refusal."""
    return Word(*await asyncio.gather(digests_of(session), count_fixed(session)))
