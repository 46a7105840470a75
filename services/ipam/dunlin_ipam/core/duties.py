"""What the ledger needs without being asked: claims, adoptions, releases of orphans."""

from collections.abc import Iterator
from dataclasses import dataclass

from dunlin.events.facts import AddressFact, AttachmentFact, NodeFact, PodFact
from dunlin.model.addresses import IPAddress
from dunlin_ipam.core.blocks import can_be_given, ip_order, network_order
from dunlin_ipam.core.choose import block_of, is_cool, rank_own
from dunlin_ipam.core.claims import is_justified, pod_cidr_claims, reclaims
from dunlin_ipam.core.events import Write
from dunlin_ipam.core.requests import release_write
from dunlin_ipam.state import Line, Name, State, evidence_of


@dataclass(frozen=True, slots=True)
class Duties:
    """`writes` to do now (then ask again); `again_ms`: when time alone may bring new ones."""

    writes: tuple[Write, ...] = ()
    again_ms: int | None = None


def duties(state: State, node: str, now_ms: int) -> Duties:
    """
    What is to be done for one node, by whoever has its lease, once the whole cluster is known.

    Blocks come first: addresses are adopted into blocks that the ledger has.
    """
    fact = state.node(node)
    if fact is None:
        return _duties_of_gone(state, node, now_ms)
    claims = [*pod_cidr_claims(state, fact), *reclaims(state, node)]
    if claims:
        return Duties(tuple(claims))
    adopted = {write.fact.name: write for write in _adoptions(state, fact, now_ms)}
    if adopted:
        return Duties(tuple(adopted.values()))
    releases, again = _releases(state, node, now_ms, gone=False)
    dropped, later = _leftovers(state, node, now_ms)
    return Duties((*releases, *dropped), _earlier(again, later))


def _duties_of_gone(state: State, node: str, now_ms: int) -> Duties:
    if not (state.lines_of_node.get(node) or state.blocks_of_node.get(node)):
        state.gone_since.pop(node, None)
        return Duties()
    end = state.gone_since.setdefault(node, now_ms) + state.rules.grace_ms
    if now_ms < end:
        return Duties(again_ms=end)
    releases, again = _releases(state, node, now_ms, gone=True)
    dropped, later = _leftovers(state, node, now_ms)
    return Duties((*releases, *dropped), _earlier(again, later))


def _earlier(one: int | None, other: int | None) -> int | None:
    return min((ms for ms in (one, other) if ms is not None), default=None)


# --- adoption
# ---------------------------------------------------------------------------------------


def _adoptions(state: State, node: NodeFact, now_ms: int) -> Iterator[Write]:
    """Addresses that stand on the node, or that a Pod's status shows, and that the ledger lacks."""
    for name in sorted(state.pods_of_node.get(node.name, ())):
        pod: PodFact = state.facts["pod"][name]
        for ip in evidence_of(pod):
            if state.lines.get(ip) is None and _fits(state, node.name, ip):
                fact = AddressFact(name=str(ip), ip=ip, node=node.name, since_ms=now_ms)
                yield _of_pod(state, fact, pod.namespace, pod.name, pod.meta.uid)
    # Later ones win in the caller's table: what stands on the node says more than a Pod's status.
    for attachment in reversed(state.attachments(node.name)):
        for ip in attachment.ips:
            if may_adopt(state, attachment, ip):
                fact = AddressFact(
                    name=str(ip), ip=ip, node=node.name, owner=attachment.name, since_ms=now_ms
                )
                yield _of_pod(
                    state, fact, attachment.pod_namespace, attachment.pod_name, attachment.pod_uid
                )


def _of_pod(state: State, fact: AddressFact, namespace: str, name: str, uid: str) -> Write:
    values = {f: getattr(fact, f) for f in ("name", "ip", "node", "owner", "since_ms")}
    return Write(
        AddressFact(**values, pod_namespace=namespace, pod_name=name, pod_uid=uid),
        state.ledger_seq(fact),
    )


def _fits(state: State, node: str, ip: IPAddress) -> bool:
    cidr = block_of(state, node, ip)
    return cidr is not None and can_be_given(cidr, ip)


def may_adopt(state: State, attachment: AttachmentFact, ip: IPAddress) -> bool:
    """The ledger lacks this address of an attachment, and nothing speaks against it."""
    if not _fits(state, attachment.node, ip):
        return False
    line = state.lines.get(ip)
    if line is None:
        return True
    if not line.is_allocated:
        # A release that is newer than the attachment is a DEL whose attachment is about to go.
        return state.attachment_seqs[Name(attachment.node, attachment.name)] > line.seq
    if line.fact.owner or line.fact.node != attachment.node:
        return False
    pods = {Name(line.fact.pod_namespace, line.fact.pod_name), *state.pods_with.get(ip, ())}
    return pods <= {Name("", ""), Name(attachment.pod_namespace, attachment.pod_name)}


# --- release
# ----------------------------------------------------------------------------------------


def _releases(
    state: State, node: str, now_ms: int, *, gone: bool
) -> tuple[list[Write], int | None]:
    writes: list[Write] = []
    again: int | None = None
    for ip in sorted(state.lines_of_node.get(node, ()), key=ip_order):
        line = state.lines[ip]
        if not line.is_allocated or (_stands(state, line) and not gone):
            continue
        due = line.fact.since_ms + state.rules.grace_ms
        if block_of(state, node, ip) is not None and now_ms < due:
            again = _earlier(again, due)
        elif _is_orphan(state, line, gone=gone):
            writes.append(release_write(state, line, now_ms))
    return writes, again


def _stands(state: State, line: Line) -> bool:
    """An attachment of its owner (or, where the owner is not known, of anybody) has it."""
    names = state.attachments_with.get(line.fact.ip, ())
    mine = {name for name in names if name.namespace == line.fact.node}
    return Name(*line.owner) in mine if line.fact.owner else bool(mine)


def _is_orphan(state: State, line: Line, *, gone: bool) -> bool:
    """Nobody has it, as far as Kubernetes and the node say; the caller has waited the grace."""
    fact = line.fact
    if not gone and state.find("switch", "", fact.node) is None:
        # Its agent has not said yet what stands there.
        return False
    if block_of(state, fact.node, fact.ip) is None:
        return True
    pod: PodFact | None = state.find("pod", fact.pod_namespace, fact.pod_name)
    if pod is None or pod.finished or pod.node not in ("", fact.node):
        return True
    if fact.pod_uid and pod.meta.uid and fact.pod_uid != pod.meta.uid:
        return True
    if not fact.owner:
        return fact.ip not in pod.ips
    return _is_replaced(state, line) or line not in rank_own(state, line.owner, fact.ip.version)[:1]


def _is_replaced(state: State, line: Line) -> bool:
    """The Pod's same interface stands with another sandbox."""
    fact = line.fact
    ifname = fact.owner.rpartition("/")[2]
    others = state.attachments_of_pod.get(Name(fact.pod_namespace, fact.pod_name), ())
    return any(
        other.name != fact.owner and other.name.rpartition("/")[2] == ifname for other in others
    )


def _leftovers(state: State, node: str, now_ms: int) -> tuple[list[Write], int | None]:
    """Blocks that the node has no longer, when nothing in them is allocated; then their lines."""
    writes: list[Write] = []
    again: int | None = None
    for cidr in sorted(state.blocks_of_node.get(node, ()), key=network_order):
        use = state.uses[cidr]
        if not is_justified(state, use.fact) and not use.allocated:
            writes.append(Write(use.fact, state.ledger_seq(use.fact), gone=True))
    for ip in sorted(state.lines_of_node.get(node, ()), key=ip_order):
        line = state.lines[ip]
        if line.is_allocated or state.block_with(ip) is not None:
            continue
        if is_cool(state, line, now_ms):
            writes.append(Write(line.fact, state.ledger_seq(line.fact), gone=True))
        else:
            again = _earlier(again, line.fact.since_ms + state.rules.cooldown_ms)
    return writes, again
