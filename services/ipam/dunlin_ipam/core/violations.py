"""What must never be: each broken invariant of the ledger, in a sentence. Tests and REST ask."""

from collections.abc import Iterator
from itertools import pairwise

from dunlin_ipam.core.blocks import can_be_given, ip_order, network_order, overlaps
from dunlin_ipam.core.choose import block_of
from dunlin_ipam.core.endpoints import plan_node
from dunlin_ipam.state import Owner, State


def violations(state: State) -> list[str]:
    """Empty when the ledger is sound; costs O(ledger), for tests, REST and the audit."""
    return [
        *_blocks_overlap(state),
        *_lines_outside(state),
        *_owners_of_two(state),
        *_two_of_a_pod(state),
        *_addresses_twice(state),
    ]


def _blocks_overlap(state: State) -> Iterator[str]:
    for one, other in pairwise(sorted(state.uses, key=network_order)):
        if overlaps(one, other):
            yield f"blocks {one} and {other} overlap"


def _lines_outside(state: State) -> Iterator[str]:
    for ip in sorted(state.lines, key=ip_order):
        line = state.lines[ip]
        if not line.is_allocated:
            continue
        cidr = block_of(state, line.fact.node, ip)
        if cidr is None:
            yield f"{ip} of {line.fact.owner} is in no block of its node {line.fact.node}"
        elif not can_be_given(cidr, ip):
            owner = line.fact.owner
            yield f"{ip} of {owner} is the network, gateway or broadcast address of {cidr}"


def _owners_of_two(state: State) -> Iterator[str]:
    for owner in sorted(state.lines_of_owner):
        if not owner.name:
            continue
        for version in (4, 6):
            ips = [str(ln.fact.ip) for ln in state.owned(owner) if ln.fact.ip.version == version]
            if len(ips) > 1:
                listed = ", ".join(sorted(ips))
                yield f"{_words(owner)} has {len(ips)} IPv{version} addresses: {listed}"


def _words(owner: Owner) -> str:
    return f"interface {owner.name} on node {owner.node}"


def _two_of_a_pod(state: State) -> Iterator[str]:
    """An address that the status of two living Pods shows."""
    for ip, pods in sorted(state.pods_with.items(), key=lambda item: ip_order(item[0])):
        if len(pods) > 1:
            yield f"{ip} is in the status of Pods {', '.join('/'.join(p) for p in sorted(pods))}"


def _addresses_twice(state: State) -> Iterator[str]:
    """Two endpoint intents with one address."""
    seen: dict[object, str] = {}
    for node in sorted(state.attachments_of_node):
        for intent in plan_node(state, node).intents:
            for ip in intent.ips:
                other = seen.setdefault(ip, intent.id)
                if other != intent.id:
                    yield f"{ip} is in the intents {other} and {intent.id}"
