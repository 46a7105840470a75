"""
The pairs whose reachability a change alters, told by workload.

Ends that policies treat alike before and after are one class, so that 10,000 Pods are as many
classes as they have kinds; and only pairs with an end that the change concerns are looked at.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import NamedTuple

from dunlin_planner.core.policy.groups import PodName
from dunlin_planner.core.policy.model import Labels, Policy, PolicyName
from dunlin_planner.core.policy.variants import Element
from dunlin_planner.core.preview.judge import Judge
from dunlin_planner.core.preview.ports import NOTHING, Ports
from dunlin_planner.core.preview.sides import Moment, Side

COMPARISONS_MAX = 2_000_000
"""Pairs of classes that one answer looks at; beyond that it says that it is not complete."""
NAMES = ("app.kubernetes.io/name", "app", "k8s-app", "run", "component", "name")
"""Labels that name a workload, the best first."""
GENERATED = (
    "pod-template-hash", "controller-revision-hash", "pod-template-generation",
    "statefulset.kubernetes.io/pod-name", "apps.kubernetes.io/pod-index",
    "batch.kubernetes.io/controller-uid", "controller-uid",
)  # fmt: skip
EVERYWHERE = (ip_network("0.0.0.0/0"), ip_network("::/0"))
OUTSIDE_NAMED = 3
ANY = "*"
"""Every workload of a namespace, or some of them: it stands for whichever a row counts."""


class Workload(NamedTuple):
    """Pods that people think of as one; `namespace` "": addresses outside."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def workload_of(pod: PodName, labels: Labels) -> Workload:
    """By the label that names it, else by all of its labels, else the Pod itself."""
    for key in NAMES:
        if labels.get(key):
            return Workload(pod.namespace, labels[key])
    own = ",".join(f"{k}={v}" for k, v in sorted(labels.items()) if k not in GENERATED)
    return Workload(pod.namespace, own or pod.name)


class Row(NamedTuple):
    """What changes between two workloads. `family` "": in each that both ends have."""

    source: Workload
    destination: Workload
    family: str
    opened: Ports
    closed: Ports


@dataclass(slots=True)
class Reach:
    """
    `rows`: pairs of Pods (or of a Pod and addresses outside) by what changes for them.

    `complete`: all pairs were looked at. `opened`, `closed`: pairs that gain, that lose something.
    """

    rows: Counter[Row] = field(default_factory=Counter)
    complete: bool = True

    @property
    def pairs(self) -> int:
        """How many pairs are treated otherwise."""
        return self.rows.total()

    @property
    def opened(self) -> int:
        """How many of them gain something."""
        return sum(count for row, count in self.rows.items() if row.opened)

    @property
    def closed(self) -> int:
        """How many of them lose something."""
        return sum(count for row, count in self.rows.items() if row.closed)

    def by_namespace(self) -> Counter[Row]:
        """The rows, all workloads of a namespace as one."""
        found: Counter[Row] = Counter()
        for row, count in self.rows.items():
            source, destination = (
                Workload(end.namespace, ANY) if end.namespace else end for end in row[:2]
            )
            found[Row(source, destination, *row[2:])] += count
        return found


@dataclass(slots=True, eq=False)
class _Class:
    """Ends alike: `members` by workload; the change concerns them `own`ly, or as a `peer`."""

    before: Side
    after: Side
    members: Counter[Workload]
    outside: bool
    concerned: bool = False


def changes(before: Moment, after: Moment, workloads: Mapping[PodName, Workload]) -> Reach:
    """Everything that differs, for Pods that have addresses at both moments."""
    classes = [*_pods(before, after, workloads), *_outside(before, after)]
    changed = _changed_policies(before.policies, after.policies)
    shared = _elements(before) & _elements(after)
    for one in classes:
        one.concerned = _is_concerned(one, changed, shared)
    known: dict[Ports, Ports] = {}
    pairs = _Pairs(Judge(before, known), Judge(after, known))
    for number, (source, destination) in enumerate(_concerned_pairs(classes)):
        if number == COMPARISONS_MAX:
            return Reach(pairs.rows, complete=False)
        pairs.compare(source, destination)
    return Reach(pairs.rows)


_Change = tuple[Ports, Ports]
"""Opened and closed."""
_SAME: _Change = (NOTHING, NOTHING)


class _Pairs:
    """
    What differs between pairs of classes.

    Equal changes are one object, known by its id: to hash 24 kB for every pair would be slow.
    """

    def __init__(self, before: Judge, after: Judge) -> None:
        self._before, self._after = before, after
        self._found: dict[tuple[int, int], _Change] = {}
        self._known: dict[_Change, _Change] = {}
        self._rows: Counter[tuple[Workload, Workload, str, int]] = Counter()

    def compare(self, source: _Class, destination: _Class) -> None:
        found = [self._difference(source, destination, family) for family in (0, 1)]
        there = [change for change in found if change is not None]
        if there and all(change is there[0] for change in there):
            self._note(source, destination, "", there[0])
            return
        for change, family in zip(found, ("IPv4", "IPv6"), strict=True):
            if change is not None:
                self._note(source, destination, family, change)

    def _difference(self, source: _Class, destination: _Class, family: int) -> _Change | None:
        """Opened and closed; None: not both have an address of this family."""
        ends = (source.before, source.after, destination.before, destination.after)
        if any(side.elements[family] is None for side in ends):
            return None
        was = self._before.reach(source.before, destination.before, family)
        is_ = self._after.reach(source.after, destination.after, family)
        return self._changes(was, is_)

    def _changes(self, was: Ports, is_: Ports) -> _Change:
        """Few different ones; numbers of 24 kB are hashed and compared by who they are."""
        if was is is_:
            return _SAME
        found = self._found.get((id(was), id(is_)))
        if found is None:
            change = (is_ & ~was, was & ~is_)
            found = self._found[id(was), id(is_)] = self._known.setdefault(change, change)
        return found

    @property
    def rows(self) -> Counter[Row]:
        """What was found."""
        changes_ = {id(change): change for change in self._known.values()}
        return Counter({Row(*key[:3], *changes_[key[3]]): n for key, n in self._rows.items()})

    def _note(self, source: _Class, destination: _Class, family: str, change: _Change) -> None:
        if change == (NOTHING, NOTHING):
            return
        for one, ones in source.members.items():
            for other, others in destination.members.items():
                # A Pod reaches itself whatever policies say.
                itself = ones if source is destination and one == other else 0
                if count := ones * others - itself:
                    self._rows[one, other, family, id(change)] += count


def _pods(before: Moment, after: Moment, workloads: Mapping[PodName, Workload]) -> Iterator[_Class]:
    found: dict[tuple[Side, Side], Counter[Workload]] = defaultdict(Counter)
    for pod, side in before.pods.items():
        if pod in after.pods:
            found[side, after.pods[pod]][workloads[pod]] += 1
    for (was, is_), members in found.items():
        yield _Class(was, is_, members, outside=False)


def _outside(before: Moment, after: Moment) -> Iterator[_Class]:
    """Addresses that are no Pod's, by the ipBlocks that hold them."""
    found: dict[tuple[Side, Side], list[str]] = defaultdict(list)
    networks = {*before.blocks, *after.blocks, *EVERYWHERE}
    for network in sorted(networks, key=lambda n: (n.version, n.prefixlen, int(n.network_address))):
        found[before.outside(network), after.outside(network)].append(str(network))
    for (was, is_), names in found.items():
        more = f" and {len(names) - OUTSIDE_NAMED} more" if len(names) > OUTSIDE_NAMED else ""
        name = f"outside {', '.join(names[:OUTSIDE_NAMED])}{more}"
        yield _Class(was, is_, Counter({Workload("", name): 1}), outside=True)


def _changed_policies(
    before: Mapping[PolicyName, Policy], after: Mapping[PolicyName, Policy]
) -> frozenset[PolicyName]:
    names = before.keys() | after.keys()
    return frozenset(name for name in names if before.get(name) != after.get(name))


def _elements(moment: Moment) -> frozenset[Element]:
    """Whatever rules refer to at this moment."""
    rules = (rule for policy in moment.policies.values() for rule in policy.rules)
    return frozenset(peer for rule in rules for peer in rule.peers or ())


def _is_concerned(one: _Class, changed: frozenset[PolicyName], shared: frozenset[Element]) -> bool:
    """Its policies differ, or it is another peer for policies that stay as they are."""
    was, is_ = one.before, one.after
    if (was.egress, was.ingress, was.names) != (is_.egress, is_.ingress, is_.names):
        return True
    if not changed.isdisjoint((*was.egress, *was.ingress)):
        return True
    for mine, now in zip(was.elements, is_.elements, strict=True):
        if (mine or frozenset()) & shared != (now or frozenset()) & shared:
            return True
    return False


def _concerned_pairs(classes: Iterable[_Class]) -> Iterator[tuple[_Class, _Class]]:
    every = list(classes)
    concerned = [one for one in every if one.concerned]
    for source in every:
        for destination in every if source.concerned else concerned:
            if not (source.outside and destination.outside):
                yield source, destination
