"""Which address is given next, and which of an owner's addresses is its own."""

from collections.abc import Container, Iterator

from dunlin.events.facts import AttachmentFact
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_ipam.core.blocks import FIRST_OFFSET, address_at, can_be_given, end_offset
from dunlin_ipam.state import BlockUse, Line, Owner, State


def free_address(
    state: State, node: str, version: int, now_ms: int, refused: Container[IPAddress] = ()
) -> IPAddress | None:
    """
    The address to give, a function of the ledger and the evidence alone; None when all are taken.

    The lowest that was never given (of the first `reuse_window` of a block); then the one released
    longest ago, if it has cooled down; then the rest of a large block. Never one that is in
    `refused`, or that an attachment or a Pod's status claims.
    """
    for cidr in state.blocks(node):
        if cidr.version != version:
            continue
        for ip in _candidates(state, state.uses[cidr], now_ms):
            if ip not in refused and not state.is_claimed(ip) and _is_free(state, ip, now_ms):
                return ip
    return None


def _is_free(state: State, ip: IPAddress, now_ms: int) -> bool:
    line = state.lines.get(ip)
    return line is None or is_cool(state, line, now_ms)


def is_cool(state: State, line: Line, now_ms: int) -> bool:
    """Released, and its cool-down is over."""
    return not line.is_allocated and line.fact.since_ms + state.rules.cooldown_ms <= now_ms


def _candidates(state: State, use: BlockUse, now_ms: int) -> Iterator[IPAddress]:
    cidr = use.fact.cidr
    end = end_offset(cidr)
    window = min(end, FIRST_OFFSET + state.rules.reuse_window)
    use.fresh = max(use.fresh, FIRST_OFFSET)
    while use.is_known(use.fresh):
        use.fresh += 1
    yield from _fresh(use, use.fresh, window)
    yield from _rested(state, use, now_ms)
    yield from _fresh(use, max(use.fresh, window), end)


def _fresh(use: BlockUse, start: int, end: int) -> Iterator[IPAddress]:
    for offset in range(start, end):
        if not use.is_known(offset):
            yield address_at(use.fact.cidr, offset)


def _rested(state: State, use: BlockUse, now_ms: int) -> Iterator[IPAddress]:
    lines = [state.lines[address_at(use.fact.cidr, offset)] for offset in use.released]
    rested = [line for line in lines if is_cool(state, line, now_ms)]
    for line in sorted(rested, key=lambda line: (line.fact.since_ms, int(line.fact.ip))):
        if can_be_given(use.fact.cidr, line.fact.ip):
            yield line.fact.ip


def rank_own(state: State, owner: Owner, version: int) -> list[Line]:
    """
    An owner's addresses of one family: the first is its own, the others are to be released.

    What stands on the node counts first; then what was written first, so that two replicas that
    gave it one each agree, whichever looks.
    """
    attachment: AttachmentFact | None = state.find("attachment", *owner)
    standing = attachment.ips if attachment else ()
    lines = [line for line in state.owned(owner) if line.fact.ip.version == version]
    return sorted(lines, key=lambda line: (line.fact.ip not in standing, line.seq))


def block_of(state: State, node: str, ip: IPAddress) -> IPNetwork | None:
    """The node's block that an address is in; None if it is in none that is the node's."""
    use = state.block_with(ip)
    return use.fact.cidr if use is not None and use.fact.node == node else None
