"""How full blocks and pools are."""

from collections.abc import Iterator

from dunlin.events.facts import Event
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_ipam.core.blocks import address_at, contains, gateway_of, network_order, usable_count
from dunlin_ipam.core.choose import is_cool
from dunlin_ipam.state import BlockUse, State


class BlockUsage(Event, frozen=True, kw_only=True, omit_defaults=False):
    """A block: `usable` = `allocated` + `cooling` + `free`; `utilisation` is 0 … 1 of usable."""

    cidr: IPNetwork
    node: str
    own: bool
    gateway: IPAddress
    usable: int
    allocated: int
    cooling: int
    free: int
    utilisation: float


class PoolUsage(Event, frozen=True, kw_only=True, omit_defaults=False):
    """A pool: `size` in addresses, `blocks` cut from it, and what is in use of all of it."""

    cidr: IPNetwork
    size: int
    blocks: int
    allocated: int
    cooling: int
    free: int
    utilisation: float


def block_usage(state: State, now_ms: int) -> Iterator[BlockUsage]:
    """Every block, in order."""
    for cidr in sorted(state.uses, key=network_order):
        use = state.uses[cidr]
        usable = usable_count(cidr)
        allocated, cooling = len(use.allocated), _cooling(state, use, now_ms)
        yield BlockUsage(
            cidr=cidr,
            node=use.fact.node,
            own=use.fact.own,
            gateway=gateway_of(cidr),
            usable=usable,
            allocated=allocated,
            cooling=cooling,
            free=usable - allocated - cooling,
            utilisation=round(allocated / usable, 4) if usable else 1.0,
        )


def _cooling(state: State, use: BlockUse, now_ms: int) -> int:
    lines = (state.lines[address_at(use.fact.cidr, offset)] for offset in use.released)
    return sum(not is_cool(state, line, now_ms) for line in lines)


def pool_usage(state: State, now_ms: int) -> Iterator[PoolUsage]:
    """Every pool, in the order of the settings."""
    blocks = list(block_usage(state, now_ms))
    for pool in state.rules.pools:
        mine = [block for block in blocks if contains(pool, block.cidr)]
        allocated = sum(block.allocated for block in mine)
        cooling = sum(block.cooling for block in mine)
        yield PoolUsage(
            cidr=pool,
            size=pool.num_addresses,
            blocks=len(mine),
            allocated=allocated,
            cooling=cooling,
            free=pool.num_addresses - allocated - cooling,
            utilisation=round(allocated / pool.num_addresses, 6),
        )
