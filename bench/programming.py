"""
One fresh switch gets 10,000 Services of 10 endpoints: flowctl's path against ovs-ofctl's.

flowctl starts from intents as bytes, as they come from the bus, and ends with the reply to the
commit of its last bundle: decode, compile, compare with a dump (of nothing), encode, write. ovs-
ofctl starts from the same tables as text in files. Both use the bridge's management socket.
"""

import gc
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench import ovs, world
from bench.measure import Metric, Options, Table, ratios, take_turns
from bench.openflow import session_with
from dunlin import wire
from dunlin.events.intents import AnyIntent
from dunlin.openflow.render import flow_text, group_text
from dunlin.service.app import calm_garbage_collector
from dunlin_flowctl.adapters.dump import dump
from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.core.desired import Desired, IntentVersion
from dunlin_flowctl.encode import Bundle, ProgramCache
from dunlin_flowctl.writer import bundles, plan_fresh_switch

SERVICES, ENDPOINTS = int(os.environ.get("DUNLIN_BENCH_SERVICES", "10000")), 10
BRIDGE = "br1"
OFCTL = "ovs-ofctl --bundle, text"
FIRST = "flowctl, first switch"
SECOND = "flowctl, every further switch"
BYTES = "Open vSwitch alone: ready bytes"
TOTAL = Metric("total", "ms")
STAGES = ("decode", "compile", "dump", "compare", "encode", "write", "commit")


class Clock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self.stages = dict.fromkeys(STAGES, 0.0)
        self._last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """All since the last lap was this stage."""
        now = time.perf_counter()
        self.stages[stage] += (now - self._last) * 1000
        self._last = now

    def move(self, source: str, target: str, milliseconds: float) -> None:
        """So much of one stage was another."""
        self.stages[source] -= milliseconds
        self.stages[target] += milliseconds


@dataclass
class Flowctl:
    """What flowctl keeps between switches."""

    desired: Desired = field(default_factory=lambda: Desired(PipelineCompiler()))
    cache: ProgramCache = field(default_factory=ProgramCache)
    written: list[Bundle] = field(default_factory=list)

    async def replay(self, management: Path) -> float:
        """The bytes that the last switch got, to another: what Open vSwitch itself needs, in ms."""
        async with session_with(management) as session:
            started = time.perf_counter()
            for bundle in self.written:
                result = await session.commit(bundle)
                assert result.applied, result.errors
            return (time.perf_counter() - started) * 1000

    def read(self, data: list[bytes], clock: Clock) -> None:
        """As `Shell._intent` does."""
        for revision, one in enumerate(data, 1):
            intent: AnyIntent = wire.decode(one, AnyIntent)  # type: ignore[arg-type]
            clock.lap("decode")
            self.desired.upsert(IntentVersion(intent, revision))
            clock.lap("compile")

    async def program(self, node: str, management: Path, clock: Clock) -> None:
        """As `SwitchRunner` and `Changes.sync` do."""
        settings = FlowctlSettings()
        async with session_with(management) as session:
            # Shaking hands is not what is measured.
            clock.lap("dump")
            clock.stages["dump"] = 0.0
            switch = self.desired.manage(node)
            assert switch is not None
            clock.lap("compile")
            flows, groups, *_ = await dump(session, settings.dump_max)
            clock.lap("dump")
            assert len(flows) + len(groups) == 0
            limit = settings.bundle_max
            plan = plan_fresh_switch(self.desired, switch, self.cache, limit)
            clock.lap("compare")
            self.written = []
            async for bundle in bundles(plan, self.cache, limit):
                self.written.append(bundle)
                clock.lap("encode")
                before = session.written_s
                result = await session.commit(bundle)
                assert result.applied, result.errors
                clock.lap("commit")
                clock.move("commit", "write", (session.written_s - before) * 1000)


class Bench:
    """One Open vSwitch, the same tables in two forms."""

    def __init__(self, switch: ovs.Ovs, services: int) -> None:
        self._ovs = switch
        self._data = [wire.encode(intent) for intent in world.intents(services, ENDPOINTS)]
        self._known: Flowctl | None = None
        self._last: Flowctl | None = None
        self.stages = Table("The same, by stage", [Metric(stage, "ms") for stage in STAGES], FIRST)
        self._groups = switch.directory / "groups.txt"
        self._flows = switch.directory / "flows.txt"
        self._write_text()

    def _write_text(self) -> None:
        flowctl = Flowctl()
        flowctl.read(self._data, Clock())
        assert flowctl.desired.manage("n1") is not None
        flows, groups = [], []
        for part in flowctl.desired.parts("n1"):
            flows += [flow_text(flow) for flow in part.flows.values()]
            groups += [group_text(group) for group in part.groups.values()]
        self._groups.write_text("\n".join(groups) + "\n")
        self._flows.write_text("\n".join(flows) + "\n")
        self.size = (len(flows), len(groups))

    def by_ofctl(self) -> Mapping[str, float]:
        """Two processes: groups, then the flows that name them."""
        self._fresh(1)
        started = time.perf_counter()
        self._ovs.ofctl("--bundle", "add-groups", BRIDGE, str(self._groups))
        self._ovs.ofctl("--bundle", "add-flows", BRIDGE, str(self._flows))
        total = (time.perf_counter() - started) * 1000
        self._check()
        return {"total": total}

    def by_flowctl(self) -> Mapping[str, float]:
        """From nothing."""
        self._fresh(1)
        self._known = Flowctl()
        self._forget()
        clock = Clock()
        self._known.read(self._data, clock)
        return self._program(self._known, "n1", FIRST, clock)

    def by_flowctl_again(self) -> Mapping[str, float]:
        """Another switch of the flowctl that wrote the first one."""
        self._fresh(2)
        if self._known is None:
            self._known = Flowctl()
            self._known.read(self._data, Clock())
            self._program(self._known, "n1", "warm-up", Clock())
            self.stages.rows.pop("warm-up")
            self._fresh(2)
        found = self._program(self._known, "n2", SECOND, Clock())
        self._last, self._known = self._known, None
        return found

    def by_bytes(self) -> Mapping[str, float]:
        """The bytes alone, of the switch before."""
        self._fresh(2)
        if self._last is None:
            self._last = Flowctl()
            self._last.read(self._data, Clock())
            self._program(self._last, "n2", "warm-up", Clock())
            self.stages.rows.pop("warm-up")
            self._fresh(2)
        total = uvloop.run(self._last.replay(self._ovs.management(BRIDGE)))
        self._check()
        return {"total": total}

    def _program(self, flowctl: Flowctl, node: str, name: str, clock: Clock) -> Mapping[str, float]:
        management = self._ovs.management(BRIDGE)
        uvloop.run(flowctl.program(node, management, clock))
        self.stages.row(name).add(**clock.stages)
        self._check()
        return {"total": sum(clock.stages.values())}

    def _fresh(self, dpid: int) -> None:
        if BRIDGE in self._ovs.vsctl("list-br").split():
            self._ovs.delete_bridge(BRIDGE)
        self._ovs.add_bridge(BRIDGE, dpid)
        gc.collect()

    @staticmethod
    def _forget() -> None:
        """A flowctl that has just started has encoded nothing yet."""
        for name, module in list(sys.modules.items()):
            if name.startswith("dunlin."):
                for item in vars(module).values():
                    clear = getattr(item, "cache_clear", None)
                    if clear is not None:
                        clear()

    def _check(self) -> None:
        """The bridge holds everything, or the figure means nothing."""
        flows = self._ovs.ofctl("dump-aggregate", BRIDGE)
        assert f"flow_count={self.size[0]}" in flows, flows


def run(options: Options) -> list[Table]:
    """Raises Unavailable."""
    calm_garbage_collector()
    services = SERVICES // 10 if options.quick else SERVICES
    table = Table(f"One fresh switch, {services} Services x {ENDPOINTS}", [TOTAL], OFCTL)
    with ovs.running() as switch:
        bench = Bench(switch, services)
        ways = {
            OFCTL: bench.by_ofctl,
            FIRST: bench.by_flowctl,
            SECOND: bench.by_flowctl_again,
            BYTES: bench.by_bytes,
        }
        take_turns(ways, table, options.rounds(7, 3), options.progress)
    flows, groups = bench.size
    table.notes.append(f"{flows} flows, {groups} groups of {ENDPOINTS + 1} buckets")
    if SECOND in table.rows and BYTES in table.rows:
        middle, low, high = ratios(
            table.rows[SECOND].values["total"], table.rows[BYTES].values["total"]
        )
        table.notes.append(
            f"a further switch takes {middle:.2f} ({low:.2f}-{high:.2f}) of what its bytes alone do"
        )
    return [table, bench.stages]
