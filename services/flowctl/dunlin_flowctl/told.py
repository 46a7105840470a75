"""Taking a switch's word for what it holds, instead of reading all of it. ADR 0046."""

import asyncio

from dunlin_flowctl.adapters.dump import count_fixed, digests_of
from dunlin_flowctl.adapters.session import Session
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.core.switch import Switch


async def told(session: Session, desired: Desired, switch: Switch) -> bool:
    """
    The switch holds a state that is known here: only what changed after it is pending now.

    False: it says nothing, or something unknown, and a dump has to tell. Its flows are counted as
    well: some may have been lost, or added, since its last owner wrote to it.

    Raises SessionClosed, Refusal.
    """
    digests, fixed = await asyncio.gather(digests_of(session), count_fixed(session))
    if desired.switches.get(switch.node) is not switch or desired.releasing:
        return False
    then = desired.known(switch, digests)
    if then is None or then.shared.fixed + switch.own.totals.fixed != fixed:
        return False
    switch.told(digests, then)
    return True
