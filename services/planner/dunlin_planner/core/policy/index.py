"""All that policies depend on, kept up to date; each change says which units it touches."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dunlin.events.facts import AttachmentFact, PodFact
from dunlin.events.intents import PolicyDirection
from dunlin.model.addresses import IPAddress, IPNetwork
from dunlin_planner.core.events import Unit
from dunlin_planner.core.groups import Slots
from dunlin_planner.core.policy.classes import Classes
from dunlin_planner.core.policy.groups import Groups, PodName
from dunlin_planner.core.policy.model import Block, Fault, Group, NamedPort, Policy, PolicyName
from dunlin_planner.core.policy.networks import Networks
from dunlin_planner.core.policy.variants import (
    Binding,
    ConjunctionKey,
    Element,
    PortKey,
    Variant,
    variants_of,
)

DIRECTIONS: tuple[PolicyDirection, ...] = ("ingress", "egress")
CONJUNCTIONS = 2**32 - 2
GENERATION = Unit("policygeneration", "", "all")


@dataclass(frozen=True, slots=True)
class Known:
    """
    A policy as it stands, with its conjunctions.

    `by_peer`: those that a peer has a clause of.
    """

    policy: Policy
    faults: tuple[Fault, ...]
    variants: tuple[Variant, ...]
    by_peer: Mapping[Element, tuple[Variant, ...]]


def class_unit(class_id: int) -> Unit:
    """The unit of a class: its id in 16 hexadecimal digits."""
    return Unit("policyclass", "", f"{class_id:016x}")


class PolicyIndex:
    """The pure state of everything about policies."""

    def __init__(self) -> None:
        self.policies: dict[PolicyName, Known] = {}
        self.refused: dict[PolicyName, tuple[Fault, ...]] = {}
        self.pods: dict[PodName, PodFact] = {}
        self.attachments: dict[PodName, dict[tuple[str, str], AttachmentFact]] = {}
        self.groups = Groups()
        self.networks = Networks()
        self.classes = Classes()
        self.conjunctions: Slots[ConjunctionKey] = Slots(CONJUNCTIONS)
        self.ports: dict[PortKey, set[PolicyName]] = defaultdict(set)
        self.subjects: dict[tuple[PolicyDirection, Group], set[PolicyName]] = defaultdict(set)
        self.peers: dict[Element, set[PolicyName]] = defaultdict(set)
        self._names: dict[tuple[PolicyDirection, str], set[PolicyName]] = defaultdict(set)
        self._bound: dict[PodName, frozenset[Binding]] = {}
        self._bindings: Counter[Binding] = Counter()
        self._by_name: dict[str, set[Binding]] = defaultdict(set)
        self._owners: dict[ConjunctionKey, PolicyName] = {}
        self._logged: set[str] = set()

    # --- queries ----------------------------------------------------------------------------------

    def units(self) -> set[Unit]:
        """Everything that may have a plan."""
        found = {class_unit(one) for one in self.classes.known}
        found |= {Unit("policyport", "", str(key)) for key in self.ports}
        found |= {Unit("policynetwork", "", str(prefix)) for prefix in self.networks.prefixes}
        for pod in self.pods.keys() | self.attachments.keys():
            found |= {Unit("policypeer", *pod), Unit("policysubject", *pod)}
        found |= {policy_unit(name) for name in (*self.policies, *self.refused)}
        return found | {GENERATION}

    def addresses(self, pod: PodName) -> tuple[IPAddress, ...]:
        """
        What the Pod is reached at.

        Those that its node has attached come before those of its status.
        """
        fact = self.pods.get(pod)
        if fact is None or fact.host_network or fact.finished:
            return ()
        attached = [a for a in self.attachments.get(pod, {}).values() if is_of(a, fact)]
        found = {ip for attachment in attached for ip in attachment.ips} or set(fact.ips)
        return tuple(sorted(found, key=lambda ip: (ip.version, int(ip))))

    def logs(self, name: PolicyName) -> bool:
        """What this policy isolates from is logged: by its own annotation, or its namespace's."""
        return self.policies[name].policy.log or name.namespace in self._logged

    def bound(self, pod: PodName) -> frozenset[Binding]:
        """The named ports of a Pod."""
        return self._bound.get(pod, frozenset())

    # --- changes ----------------------------------------------------------------------------------

    def put_attachment(self, old: AttachmentFact | None, new: AttachmentFact | None) -> set[Unit]:
        """An interface of a Pod came, changed or went."""
        touched: set[Unit] = set()
        if old is not None:
            pod = PodName(old.pod_namespace, old.pod_name)
            self.attachments[pod].pop((old.namespace, old.name), None)
            if not self.attachments[pod]:
                del self.attachments[pod]
            touched |= {Unit("policypeer", *pod), Unit("policysubject", *pod)}
        if new is not None:
            pod = PodName(new.pod_namespace, new.pod_name)
            self.attachments.setdefault(pod, {})[new.namespace, new.name] = new
            touched |= {Unit("policypeer", *pod), Unit("policysubject", *pod)}
        return touched

    def put_pod(self, pod: PodName, fact: PodFact | None) -> set[Unit]:
        """A Pod came, changed or went."""
        if fact is None:
            self.pods.pop(pod, None)
        else:
            self.pods[pod] = fact
        member = fact is not None and not fact.host_network
        touched = {Unit("policypeer", *pod), Unit("policysubject", *pod)}
        touched |= self._bind(pod, _bindings(fact) if fact is not None and member else frozenset())
        self.groups.put_pod(pod, fact.labels if fact is not None and member else None)
        return touched | self._classify([pod])

    def put_namespace(
        self, name: str, labels: dict[str, str] | None, *, log: bool = False
    ) -> set[Unit]:
        """A namespace came, changed or went; `log`: what is denied to its Pods is logged."""
        touched = self._classify(self.groups.put_namespace(name, labels))
        if log != (name in self._logged):
            self._logged ^= {name}
            for (_, group), names in self.subjects.items():
                if any(policy.namespace == name for policy in names):
                    touched |= set(map(class_unit, self.classes.having(group)))
        return touched

    def put_policy(
        self, name: PolicyName, policy: Policy | None, faults: tuple[Fault, ...] = ()
    ) -> set[Unit]:
        """A policy came, changed or went; None with `faults`: it is refused as a whole."""
        if policy is None and faults:
            self.refused[name] = faults
        else:
            self.refused.pop(name, None)
        known = None
        if policy is not None:
            known = _known(policy, faults, variants_of(policy, self._numbers))
        return self._replace(name, known)

    # --- inside: policies -------------------------------------------------------------------------

    def _replace(self, name: PolicyName, new: Known | None) -> set[Unit]:
        old = self.policies.get(name)
        touched = {policy_unit(name), GENERATION}
        elements = _elements(old) | _elements(new)
        ports = {
            key for known in (old, new) if known for v in known.variants for key in v.port_keys
        }
        changed = self._change_uses(name, old, new)
        if new is None:
            self.policies.pop(name, None)
        else:
            self.policies[name] = new
        touched |= self._identify(old, new)
        touched |= {Unit("policyport", "", str(key)) for key in ports}
        for element in elements:
            touched |= set(map(class_unit, self.classes.having(element)))
        for prefix in changed.prefixes:
            touched |= self._classify_prefix(prefix)
        return touched | self._classify(changed.pods)

    def _change_uses(self, name: PolicyName, old: Known | None, new: Known | None) -> "_Changed":
        """New uses first, so that what both need is never forgotten in between."""
        changed = _Changed(set(), set())
        before, after = _uses(old), _uses(new)
        for table, keys in after.items():
            for key in keys - before.get(table, set()):
                self._use(table, key, name, changed)
        for table, keys in before.items():
            for key in keys - after.get(table, set()):
                self._release(table, key, name, changed)
        return changed

    def _table(self, table: str) -> dict[object, set[PolicyName]]:
        found: dict[object, set[PolicyName]] = getattr(self, table)
        return found

    def _use(self, table: str, key: object, name: PolicyName, changed: "_Changed") -> None:
        users = self._table(table)[key]
        first = not users
        users.add(name)
        if not first:
            return
        group = _group_of(key)
        if group is not None:
            self.groups.add(group)
            changed.pods |= self.groups.members[group]
        elif isinstance(key, Block):
            changed.prefixes |= self.networks.add(key)
        elif table == "_names":
            changed.pods |= self._pods_with(key)

    def _release(self, table: str, key: object, name: PolicyName, changed: "_Changed") -> None:
        users = self._table(table)[key]
        users.discard(name)
        if users:
            return
        del self._table(table)[key]
        group = _group_of(key)
        if group is not None:
            changed.pods |= self.groups.members[group]
            if not self._is_used(group):
                self.groups.remove(group)
        elif isinstance(key, Block):
            changed.prefixes |= self.networks.remove(key)
        elif table == "_names":
            changed.pods |= self._pods_with(key)

    def _is_used(self, group: Group) -> bool:
        return group in self.peers or any((d, group) in self.subjects for d in DIRECTIONS)

    def _pods_with(self, key: object) -> set[PodName]:
        assert isinstance(key, tuple)
        bindings = self._by_name.get(key[1], set())
        return (
            {pod for pod, bound in self._bound.items() if bound & bindings} if bindings else set()
        )

    def _identify(self, old: Known | None, new: Known | None) -> set[Unit]:
        """Conjunction ids for new variants; those whose id moved by that are touched too."""
        before = {v.key for v in old.variants} if old else set()
        after = {v.key for v in new.variants} if new else set()
        moved: set[ConjunctionKey] = set()
        for key in sorted(before - after):
            moved |= self.conjunctions.remove(key)
            del self._owners[key]
        for key in sorted(after - before):
            self._owners[key] = PolicyName(key.namespace, key.policy)
            moved |= self.conjunctions.add(key)
        touched: set[Unit] = set()
        for name in {self._owners[key] for key in moved if key in self._owners}:
            known = self.policies[name]
            touched.add(policy_unit(name))
            touched |= {Unit("policyport", "", str(k)) for v in known.variants for k in v.port_keys}
            for element in _elements(known):
                touched |= set(map(class_unit, self.classes.having(element)))
        return touched

    # --- inside: named ports ----------------------------------------------------------------------

    def _numbers(self, port: NamedPort) -> Iterable[Binding]:
        found = self._by_name.get(port.name, ())
        return [b for b in found if port.protocol in (None, b.protocol)]

    def _bind(self, pod: PodName, new: frozenset[Binding]) -> set[Unit]:
        """The named ports of a Pod; policies whose names got or lost a number are made anew."""
        old = self._bound.get(pod, frozenset())
        names: set[str] = set()
        for binding in new - old:
            self._bindings[binding] += 1
            if self._bindings[binding] == 1:
                self._by_name[binding.name].add(binding)
                names.add(binding.name)
        for binding in old - new:
            self._bindings[binding] -= 1
            if not self._bindings[binding]:
                del self._bindings[binding]
                self._by_name[binding.name].discard(binding)
                names.add(binding.name)
        if new:
            self._bound[pod] = new
        else:
            self._bound.pop(pod, None)
        touched: set[Unit] = set()
        users = {u for n in names for d in DIRECTIONS for u in self._names.get((d, n), ())}
        for user in sorted(users):
            known = self.policies[user]
            touched |= self.put_policy(user, known.policy, known.faults)
        return touched

    # --- inside: classes --------------------------------------------------------------------------

    def _classify(self, pods: Iterable[PodName]) -> set[Unit]:
        touched: set[Unit] = set()
        for pod in pods:
            groups = self.groups.of(pod)
            bound = self._bound.get(pod, frozenset()) if pod in self.groups.labels else frozenset()
            peer: set[Element] = {group for group in groups if group in self.peers}
            peer |= {b for b in bound if ("egress", b.name) in self._names}
            changed = self.classes.put("peer", pod, frozenset(peer))
            if changed:
                touched.add(Unit("policypeer", *pod))
            for direction in DIRECTIONS:
                subject: set[Element] = {g for g in groups if (direction, g) in self.subjects}
                if subject and direction == "ingress":
                    subject |= {b for b in bound if ("ingress", b.name) in self._names}
                moved = self.classes.put(direction, pod, frozenset(subject))
                if moved:
                    touched.add(Unit("policysubject", *pod))
                changed |= moved
            touched |= set(map(class_unit, changed))
        return touched

    def _classify_prefix(self, prefix: IPNetwork) -> set[Unit]:
        blocks = self.networks.blocks(prefix)
        changed = self.classes.put("network", prefix, frozenset(blocks or ()))
        touched = {Unit("policynetwork", "", str(prefix))}
        return touched | set(map(class_unit, changed))


@dataclass(slots=True)
class _Changed:
    pods: set[PodName]
    prefixes: set[IPNetwork]


def is_of(attachment: AttachmentFact, pod: PodFact) -> bool:
    """The interface belongs to this Pod, and not to an earlier one of its name."""
    return not attachment.pod_uid or not pod.meta.uid or attachment.pod_uid == pod.meta.uid


def policy_unit(name: PolicyName) -> Unit:
    """The unit of a policy of either kind."""
    return Unit("networkpolicy" if name.namespace else "clusternetworkpolicy", *name)


def _known(policy: Policy, faults: tuple[Fault, ...], variants: tuple[Variant, ...]) -> Known:
    found: dict[Element, list[Variant]] = defaultdict(list)
    for variant in variants:
        for element in dict.fromkeys(variant.elements):
            found[element].append(variant)
    return Known(policy, faults, variants, {key: tuple(some) for key, some in found.items()})


def _bindings(pod: PodFact) -> frozenset[Binding]:
    return frozenset(Binding(p.protocol, p.name, p.port) for p in pod.ports if p.name)


def _group_of(key: object) -> Group | None:
    if isinstance(key, Group):
        return key
    if isinstance(key, tuple) and len(key) == 2 and isinstance(key[1], Group):
        return key[1]
    return None


def _elements(known: Known | None) -> set[Element]:
    """Whatever has clauses of this policy."""
    if known is None:
        return set()
    found: set[Element] = {known.policy.subject}
    for variant in known.variants:
        found.update(variant.elements)
    return found


def _uses(known: Known | None) -> dict[str, set[object]]:
    """The indexes that name this policy, and under which keys."""
    if known is None:
        return {}
    policy = known.policy
    return {
        "subjects": {(direction, policy.subject) for direction in policy.directions},
        "peers": {e for variant in known.variants for e in variant.elements},
        "ports": {key for variant in known.variants for key in variant.port_keys},
        "_names": {
            (rule.direction, port.name)
            for rule in policy.rules
            for port in rule.ports or ()
            if isinstance(port, NamedPort)
        },
    }
