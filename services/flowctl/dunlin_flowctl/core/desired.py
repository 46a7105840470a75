"""Every intent, compiled: what every managed switch should hold."""

from collections.abc import Container, Iterable, Iterator
from typing import Any

from dunlin.events.intents import AnyIntent, PolicyCommitIntent, SwitchIntent
from dunlin.events.intents import intent_id as make_id
from dunlin.model.ids import IntentId, format_dpid
from dunlin.openflow.cookie import CookieIndex
from dunlin.openflow.flow import Program
from dunlin.subjects import ALL_SCOPE
from dunlin_flowctl.core.compiler import Compiler
from dunlin_flowctl.core.cookies import CookiesOn
from dunlin_flowctl.core.digest import Digests
from dunlin_flowctl.core.held import Held, Version
from dunlin_flowctl.core.layer import Layer
from dunlin_flowctl.core.names import PodNames
from dunlin_flowctl.core.program import Compiled, Key, Workshop
from dunlin_flowctl.core.recent import Recent
from dunlin_flowctl.core.source import Source, Sources
from dunlin_flowctl.core.switch import Moment, Switch, Then


class IntentVersion(Version):
    """The newest version of an intent, and when that change happened."""

    __slots__ = ()

    @property
    def moment(self) -> Moment:
        """When this change happened."""
        return Moment(self.revision, self.published_ms, self.intent.trigger_ms)


class Desired:
    """
    Intents and their programs. Programs that need a switch are made for managed switches only.

    Shared intents win over a switch's own; within both the smaller id wins (see `Layer`).
    `held`: what waits for the rest of its change. After a commit has been read, `release` is called
    until nothing is `releasing`; switches are given nothing meanwhile.
    `read`: the stream is read up to here; `revision`: and nothing up to here waits.
    """

    def __init__(self, compiler: Compiler) -> None:
        self._compiler = compiler
        self.forget()

    def forget(self) -> None:
        """The intent stream is new: nothing is known and no switch is managed."""
        self._workshop = Workshop()
        self._sources = Sources(self._compiler.version, self._compiler.digest)
        self.shared = Layer(self._workshop, keep=True)
        self.intents: dict[IntentId, IntentVersion] = {}
        self.switches: dict[str, Switch] = {}
        self.failures: dict[IntentId, str] = {}
        self.unreadable: dict[IntentId, str] = {}
        self.read = 0
        self.held = Held()
        self.recent = Recent()
        self._committed = Moment(0)
        self.pods = PodNames()
        self._contexts: dict[str, Any] = {}
        self._scoped: dict[str, set[IntentId]] = {}
        self._everywhere: set[IntentId] = set()
        self._shared_kinds: set[str] = set()
        self._cookies = CookieIndex()
        self._nodes_of_dpid: dict[int, set[str]] = {}

    # --- intents ----------------------------------------------------------------------------------

    @property
    def revision(self) -> int:
        """Everything up to here is what switches should hold."""
        first = self.held.first
        return self.read if first is None else min(self.read, first - 1)

    @property
    def releasing(self) -> bool:
        """A change that is complete is being taken over, one intent after the other."""
        return bool(self.held.due)

    def upsert(self, version: IntentVersion) -> set[str]:
        """A newer version of an intent; returns the nodes whose switch has something to do."""
        if version.revision <= self.read:
            return set()
        self.read = version.revision
        self.unreadable.pop(version.intent.id, None)
        if self.held.keeps(version):
            return set()
        if isinstance(version.intent, PolicyCommitIntent):
            self._committed = version.moment
            self.held.commit(version.intent, version.revision, self.intents)
        return self._put(version, version.moment)

    def release(self) -> set[str]:
        """The next intent of a change that is complete; returns as `upsert`."""
        intent_id, version, again, since = self.held.due.popleft()
        if again:
            return self._compile_again(intent_id)
        # It comes into force by its commit: what was read between them is not held up, unless it
        # was prepared: who waits for that revision waits for the whole.
        moment = Moment(since or self._committed.revision, self._committed.published_ms)
        if version is None:
            return self._remove(intent_id, moment)
        self.held.drop(intent_id)
        intent, published_ms = version.intent, version.published_ms
        moment = Moment(moment.revision, published_ms, intent.trigger_ms)
        return self._put(IntentVersion(intent, version.revision, published_ms), moment)

    def prepared(self, switch: Switch) -> int:
        """The newest change that this switch holds beside what is committed; 0: none."""
        return self.held.prepared if switch.revision(self.read) >= self.held.prepared_at else 0

    def _compile_again(self, intent_id: IntentId) -> set[str]:
        """What is prepared of this intent has changed."""
        standing = self.intents.get(intent_id)
        coming = self.held.coming.get(intent_id)
        if coming is not None:
            if self._compiler.is_shared(coming.intent):
                self._shared_kinds.add(intent_id.split("/", 2)[1])
            else:
                self._index(coming.intent)
        if self.is_shared(intent_id):
            program = self._compile_shared(intent_id, standing.intent if standing else None)
            return self._put_shared(intent_id, program, self._committed)
        return self._put_own(intent_id, (intent_id.split("/", 1)[0],), self._committed)

    def _put(self, version: IntentVersion, moment: Moment) -> set[str]:
        intent, intent_id = version.intent, version.intent.id
        self._make_as_it_was(intent)
        before = self.intents.get(intent_id)
        self.intents[intent_id] = version
        if before is None and intent.scope == ALL_SCOPE:
            self._cookies.add(intent_id)
        self.pods.put(before.intent if before else None, intent)
        if isinstance(intent, SwitchIntent):
            self._index_switch(before, intent)
            return self._new_context(intent.scope, moment)
        if self._compiler.is_shared(intent):
            self._shared_kinds.add(intent_id.split("/", 2)[1])
            program = self._compile_shared(intent_id, intent)
            return self._put_shared(intent_id, program, moment)
        self._index(intent)
        nodes = self.switches if intent.scope == ALL_SCOPE else (intent.scope,)
        return self._put_own(intent_id, nodes, moment)

    def delete(self, intent_id: IntentId, moment: Moment) -> set[str]:
        """An intent is gone; returns the nodes whose switch has something to do."""
        if moment.revision <= self.read:
            return set()
        self.read = moment.revision
        self.unreadable.pop(intent_id, None)
        self.held.drop(intent_id)
        return self._remove(intent_id, moment)

    def _remove(self, intent_id: IntentId, moment: Moment) -> set[str]:
        version = self.intents.get(intent_id)
        if version is None:
            return set()
        intent = version.intent
        self._make_as_it_was(intent)
        del self.intents[intent_id]
        self._sources.forget(intent_id)
        if intent.scope == ALL_SCOPE:
            self._cookies.discard(intent_id)
        self.pods.put(intent, None)
        self.failures.pop(intent_id, None)
        if isinstance(intent, SwitchIntent):
            self._scoped.get(intent.scope, set()).discard(intent_id)
            self._release_dpid(intent)
            self.unmanage(intent.scope)
            return set()
        if self._compiler.is_shared(intent):
            return self._put_shared(intent_id, None, moment)
        self._everywhere.discard(intent_id)
        self._scoped.get(intent.scope, set()).discard(intent_id)
        nodes = self.switches if intent.scope == ALL_SCOPE else (intent.scope,)
        return self._put_own(intent_id, nodes, moment)

    def cannot_read(self, intent_id: IntentId, revision: int, reason: str) -> None:
        """Its newest version does not parse: what stands of it stays, and is never deleted."""
        if revision > self.read:
            self.read = revision
            self.held.drop(intent_id)
            self.unreadable[intent_id] = reason

    def read_up_to(self, revision: int) -> None:
        """The stream is read up to here."""
        self.read = max(self.read, revision)

    # --- switches ---------------------------------------------------------------------------------

    def node_of(self, dpid: int) -> str | None:
        """The node whose switch this is: the first by name, where two claim one dpid."""
        return min(self._nodes_of_dpid.get(dpid, ()), default=None)

    def switch_intent(self, node: str) -> SwitchIntent | None:
        """The switch intent of a node."""
        version = self.intents.get(make_id(node, "switch", "pipeline"))
        return version.intent if version and isinstance(version.intent, SwitchIntent) else None

    def intents_of(self, node: str) -> list[IntentVersion]:
        """What only this node's switch needs, by id."""
        return [self.intents[intent_id] for intent_id in sorted(self._scoped.get(node, ()))]

    def cookies_on(self, node: str) -> CookiesOn:
        """The intents of the cookies of this node's switch."""
        return CookiesOn(self._cookies, self._scoped.get(node, ()))

    def nodes(self) -> list[str]:
        """Every node that has a switch intent, sorted."""
        return sorted(node for nodes in self._nodes_of_dpid.values() for node in nodes)

    def manage(self, node: str) -> Switch | None:
        """Compile for the switch of `node`; None: it has no switch intent."""
        switch = self.begin(node)
        if switch is not None:
            self._make(switch)
        return switch

    def begin(self, node: str) -> Switch | None:
        """The switch of `node`, as yet without what stands already; None: no switch intent."""
        intent = self.switch_intent(node)
        if intent is None:
            return None
        switch = Switch(node, intent.dpid, Layer(self._workshop, self.shared.owner))
        self.switches[node] = switch
        self._contexts[node] = self._compiler.context(intent)
        return switch

    def compiling(self, switch: Switch) -> Iterator[None]:
        """
        Compile everything for a switch that has begun, one intent a step.

        The caller lets others have their turn, and intents may change between two steps. Ends early
        when the switch is not managed any more.
        """
        if switch.made:
            return
        for intent_id in self._own_ids(switch.node):
            switch.own.put(intent_id, self._program(switch, intent_id))
            yield
            if switch.made or self.switches.get(switch.node) is not switch:
                return
        switch.made = True
        if switch.synced:
            # It was taken at its word, before anybody knew in full what it says.
            switch.suspect |= switch.own.totals.digest != switch.digests.own
        else:
            # All of it will be compared with what the switch holds.
            switch.pending = {}

    def _make(self, switch: Switch) -> Layer:
        """Its own part, which is compiled at once where it has not been."""
        for _ in self.compiling(switch):
            pass
        return switch.own

    def _make_as_it_was(self, intent: AnyIntent) -> None:
        """
        An own intent of a switch, which was taken at its word, is about to change.

        What the switch holds is what was made from the intents before.
        """
        if self._compiler.is_shared(intent):
            return
        for node in self.switches if intent.scope == ALL_SCOPE else (intent.scope,):
            switch = self.switches.get(node)
            if switch is not None and switch.synced:
                self._make(switch)

    def unmanage(self, node: str) -> None:
        """Forget what was compiled for this switch."""
        self.switches.pop(node, None)
        self._contexts.pop(node, None)

    def known(self, switch: Switch, digests: Digests) -> Then | None:
        """
        The state that a switch says to hold; None: none that is known, or not for certain.

        While its own part is not `made`: if it says that it was made from what there is here.
        """
        if not self.certain(switch.node):
            return None
        if switch.made:
            same = digests.own == switch.own.totals.digest
        else:
            said = Source.of(digests.source)
            same = digests.own != 0 and said.digest == self._source_digest(switch.node)
        return self.recent.then(digests.shared, self.shared.totals) if same else None

    def source(self, switch: Switch) -> int:
        """
        What the switch's own part is made from, as a number to be told the next owner.

        0: not everything of it is as it was asked for, which the next owner has to see for itself.
        """
        totals = switch.own.totals
        if not switch.made or switch.failures or switch.own.conflicted:
            return 0
        if totals.flows != totals.fixed:
            return 0
        if switch.source is None:
            digest = self._source_digest(switch.node)
            switch.source = Source(digest, totals.flows, totals.groups).word()
        return switch.source

    def _source_digest(self, node: str) -> int:
        """Of everything that this switch's own part is made from."""
        parts: list[AnyIntent | None] = []
        for intent_id in self._own_ids(node):
            known: list[Version | None] = [self.intents.get(intent_id)]
            if intent_id in self.held.coming:
                known += [None, self.held.coming[intent_id]]
            parts += [version.intent if version is not None else None for version in known]
        return self._sources.digest(parts)

    def certain(self, node: str) -> bool:
        """What stands here is all that this switch should hold: nothing is unreadable."""
        scopes = {intent_id.split("/", 1)[0] for intent_id in self.unreadable}
        return not self.held.incomplete and scopes.isdisjoint({ALL_SCOPE, node})

    def get(self, node: str, intent_id: IntentId) -> Compiled | None:
        """What the switch of `node` should hold of an intent."""
        part = self.shared.effective.get(intent_id)
        return part or self._make(self.switches[node]).effective.get(intent_id)

    def is_shared(self, intent_id: IntentId) -> bool:
        """Its program is the same on every switch."""
        return intent_id.split("/", 2)[1] in self._shared_kinds

    def owner(self, node: str, key: Key, but: Container[IntentId] = ()) -> IntentId | None:
        """The intent, none of `but`, that should stand at `key` on the switch of `node`."""
        owner = self.shared.owner(key) or self._make(self.switches[node]).owner(key)
        return None if owner in but else owner

    def parts(self, node: str) -> Iterator[Compiled]:
        """
        Everything that the switch of `node` should hold; no key twice.

        Its own comes first: of a new pipeline the tables that shared flows lead to.
        """
        yield from self._make(self.switches[node]).effective.values()
        yield from self.shared.effective.values()

    def errors(self, node: str) -> list[tuple[IntentId, int, str]]:
        """(intent, revision, reason) of everything that is not as asked there, by id."""
        switch = self.switches[node]
        reasons: dict[IntentId, str] = {**self.failures, **switch.failures}
        for layer in (self.shared, switch.own):
            for intent_id in layer.conflicted:
                reasons[intent_id] = "; ".join(map(str, layer.effective[intent_id].conflicts[:3]))
        reasons |= {
            intent_id: reason
            for intent_id, reason in self.unreadable.items()
            if intent_id.split("/", 1)[0] in {ALL_SCOPE, node}
        }
        reasons |= {intent_id: refusal.reason for intent_id, refusal in switch.refused.items()}
        return [(item, self._revision_of(item), reasons[item]) for item in sorted(reasons)]

    def _revision_of(self, intent_id: IntentId) -> int:
        version = self.intents.get(intent_id)
        return version.revision if version else 0

    # --- inside -----------------------------------------------------------------------------------

    def _own_ids(self, node: str) -> tuple[IntentId, ...]:
        """What is compiled for the switch of `node` alone."""
        return (*sorted(self._scoped.get(node, ())), *sorted(self._everywhere))

    def _index(self, intent: AnyIntent) -> None:
        if intent.scope == ALL_SCOPE:
            self._everywhere.add(intent.id)
        else:
            self._scoped.setdefault(intent.scope, set()).add(intent.id)

    def _index_switch(self, before: IntentVersion | None, intent: SwitchIntent) -> None:
        self._index(intent)
        if before is not None and isinstance(before.intent, SwitchIntent):
            self._release_dpid(before.intent)
            if before.intent.dpid != intent.dpid:
                self.unmanage(intent.scope)
        self._nodes_of_dpid.setdefault(intent.dpid, set()).add(intent.scope)
        self._check_dpid(intent.dpid)

    def _release_dpid(self, intent: SwitchIntent) -> None:
        self._nodes_of_dpid[intent.dpid].discard(intent.scope)
        self.failures.pop(intent.id, None)
        self._check_dpid(intent.dpid)

    def _check_dpid(self, dpid: int) -> None:
        """Two nodes with one dpid: the first by name has the switch, the others are reported."""
        owner = self.node_of(dpid)
        for node in self._nodes_of_dpid[dpid]:
            intent_id = make_id(node, "switch", "pipeline")
            self.failures.pop(intent_id, None)
            if node != owner:
                self.failures[intent_id] = f"dpid {format_dpid(dpid)} belongs to node {owner}"
                self.unmanage(node)

    def _new_context(self, node: str, moment: Moment) -> set[str]:
        """The switch intent of `node` is new: so is all that was compiled for that switch."""
        if node not in self.switches:
            return set()
        intent = self.switch_intent(node)
        assert intent is not None, node
        self._contexts[node] = self._compiler.context(intent)
        busy: set[str] = set()
        for intent_id in self._own_ids(node):
            busy |= self._put_own(intent_id, (node,), moment)
        return busy

    def _put_own(self, intent_id: IntentId, nodes: Iterable[str], moment: Moment) -> set[str]:
        busy = set()
        for node in nodes:
            switch = self.switches.get(node)
            if switch is None:
                continue
            if switch.synced:
                self._make(switch)
            switch.source = None
            program = self._program(switch, intent_id)
            if switch.mark(switch.own.put(intent_id, program), moment):
                busy.add(node)
        return busy

    def _program(self, switch: Switch, intent_id: IntentId) -> Program | None:
        """Of one of the switch's own intents, as it stands now."""
        switch.failures.pop(intent_id, None)
        version = self.intents.get(intent_id)
        if version is None and intent_id not in self.held.coming:
            return None
        intent = version.intent if version is not None else None
        program, reason = self._try(intent_id, intent, self._contexts[switch.node])
        if reason:
            switch.failures[intent_id] = reason
        return program

    def _compile_shared(self, intent_id: IntentId, intent: AnyIntent | None) -> Program | None:
        self.failures.pop(intent_id, None)
        if intent is None and intent_id not in self.held.coming:
            return None
        program, reason = self._try(intent_id, intent, None)
        if reason:
            self.failures[intent_id] = reason
        return program

    def _try(
        self, intent_id: IntentId, intent: AnyIntent | None, context: Any
    ) -> tuple[Program, str]:
        """Its program, and no reason; or the empty program, and why."""
        try:
            if intent_id in self.held.coming:
                coming = self.held.coming[intent_id]
                new = coming.intent if coming is not None else None
                return self._compiler.both(intent, new, context), ""
            assert intent is not None, intent_id
            return self._compiler.compile(intent, context), ""
        except Exception as error:  # noqa: BLE001 - the reason goes into Applied.errors and a metric
            return Program(), f"does not compile: {type(error).__name__}: {error}"

    def _put_shared(self, intent_id: IntentId, program: Program | None, moment: Moment) -> set[str]:
        before = self.shared.totals
        changes = self.shared.put(intent_id, program)
        if not changes:
            return set()
        self.recent.note(before, changes, moment)
        keys = {
            key
            for part in changes.values()
            for compiled in (part.old, part.new)
            if compiled is not None
            for key in compiled.keys()  # noqa: SIM118 - not a mapping
        }
        busy = set()
        for node, switch in self.switches.items():
            both = changes
            if switch.own.claims_any(keys):
                # A switch's own intents lose to the shared ones, or get something back.
                both = {**changes, **switch.own.refresh(keys)}
            if switch.mark(both, moment):
                busy.add(node)
        return busy
