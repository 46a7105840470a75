"""
From a change of one EndpointSlice to its acknowledgement by 100 switches.

Real are: NATS, ipam, the planner, flowctl (processes as in production), 100 bridges in one Open
vSwitch that connect to it (DUNLIN_BENCH_SWITCHES: another number), and 1,000 Services of 10
endpoints on each. The watcher's part is played here: the fact is published, and the clock starts
with that. Beside it, a bare bundle with the same change goes to one more bridge that holds the
same tables, and to 100 at once: what Open vSwitch itself needs.
"""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from bench import ovs, world
from bench.measure import Metric, Options, Row, Table, at_rest, percentile
from bench.openflow import TimedSession, session_with
from bench.programming import Clock, Flowctl
from dunlin import subjects, wire
from dunlin.bus import connect
from dunlin.bus.base import Bus, Message
from dunlin.bus.nats_server import NatsServer
from dunlin.events.facts import Fact, Meta, SyncFact
from dunlin.events.intents import AnyIntent
from dunlin.events.rpc import BarrierReply, BarrierRequest
from dunlin.events.state import Applied, Progress
from dunlin_flowctl.adapters.pipeline import PipelineCompiler
from dunlin_flowctl.config import FlowctlSettings
from dunlin_flowctl.core.delta import ChangeSet
from dunlin_flowctl.encode import OWN_XID, Bundle, encode_phases
from dunlin_lab import netns

SWITCHES = int(os.environ.get("DUNLIN_BENCH_SWITCHES", "100"))
SERVICES, ENDPOINTS, BARE_BRIDGES = 1_000, 10, SWITCHES
DEADLINE_S = 120.0
PAUSE_S = 0.05
"""Between changes: each finds everything at rest."""
BARE = "bare bundle, one bridge"
BARE_ALL = f"bare bundles, {BARE_BRIDGES} bridges at once"
APPLIED = f"fact -> applied by {SWITCHES}"
BARRIER = f"fact -> barrier of {SWITCHES}"
STAGES = ("fact stored", "intent read", "watermark read", "first applied", "last applied")


@dataclass
class Seen:
    """What the bus has said, for whoever waits. Times are of `time.perf_counter`."""

    intents: dict[str, tuple[int, float]] = field(default_factory=dict)
    progress: Progress | None = None
    progress_at: float = 0.0
    applied: dict[str, tuple[Applied, float]] = field(default_factory=dict)
    moved: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def follow_intents(self, bus: Bus) -> None:
        """Who wants to know when a switch could have known it."""
        async for batch in bus.follow(subjects.INTENTS_STREAM):
            now = time.perf_counter()
            self.intents |= {record.subject: (record.seq, now) for record in batch.records}
            await self.notify()

    async def follow_state(self, bus: Bus) -> None:
        """Watermarks and acknowledgements."""
        async for batch in bus.follow(subjects.STATE_STREAM):
            now = time.perf_counter()
            for record in batch.records:
                if subjects.split(record.subject)[0] == "applied":
                    applied = wire.decode(record.data, Applied)
                    self.applied[applied.node] = (applied, now)
                else:
                    progress = wire.decode(record.data, Progress)
                    if progress.service == "planner":
                        self.progress, self.progress_at = progress, now
            await self.notify()

    async def notify(self) -> None:
        """Something came."""
        async with self.moved:
            self.moved.notify_all()

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for a level. Raises RuntimeError: not reached in time."""
        try:
            async with asyncio.timeout(DEADLINE_S), self.moved:
                await self.moved.wait_for(reached)
        except TimeoutError as error:
            raise RuntimeError(
                f"not in {DEADLINE_S} s; planner: {self.progress}; {len(self.intents)} intents; "
                f"revisions: {[applied.revision for applied, _ in self.applied.values()]}"
            ) from error

    def revision(self) -> int:
        """What all switches hold."""
        if len(self.applied) < SWITCHES:
            return -1
        return min(applied.revision for applied, _ in self.applied.values())


class Bench:
    """A running control plane. `changes`: how many so far."""

    def __init__(self, bus: Bus, bare: list[TimedSession], services: int) -> None:
        self.bus = bus
        self._bare = bare
        self._services = services
        self._epoch = ""
        self.seen = Seen()
        self.changes = 0
        self._bundle = _bundle()

    async def load(self) -> None:
        """Publish the cluster; returns when every switch holds it."""
        facts: list[Fact] = []
        for node in range(1, SWITCHES + 1):
            facts += world.node_facts(node)
        for number in range(self._services):
            facts += (world.service_fact(number), world.slice_fact(number, ENDPOINTS))
        facts.append(SyncFact(name="watcher", meta=Meta(observed_ms=1)))
        results = await self.bus.publish_many(
            [Message(fact.subject, wire.encode(fact)) for fact in facts]
        )
        last = results[-1]
        assert isinstance(last, int), last
        await self.seen.until(lambda: self._planned(last))
        await self.seen.until(lambda: self.seen.revision() >= self._wanted())
        self._epoch = await self.bus.epoch(subjects.INTENTS_STREAM)

    def _wanted(self) -> int:
        """The newest intent; the switches' own come last, after ipam's claim."""
        switches = sum(1 for subject in self.seen.intents if ".switch." in subject)
        assert self.seen.progress is not None
        return self.seen.progress.intent_seq if switches == SWITCHES else sys.maxsize

    def _planned(self, fact_seq: int) -> bool:
        progress = self.seen.progress
        return progress is not None and progress.complete and progress.fact_seq >= fact_seq

    async def _publish(self) -> tuple[int, str]:
        """One change; the sequence of its fact and the subject of its intent."""
        self.changes += 1
        number = self.changes * 7919 % self._services
        fact = world.slice_fact(number, ENDPOINTS, self.changes)
        intent = world.service_intent(number, 0)
        return await self.bus.publish(Message(fact.subject, wire.encode(fact))), intent.subject

    async def change_until_applied(self) -> list[float]:
        """Milliseconds since the start, by `STAGES`."""
        start = time.perf_counter()
        seq, subject = await self._publish()
        stored = time.perf_counter()
        await self.seen.until(lambda: self._planned(seq))
        planned = self.seen.progress_at
        assert self.seen.progress is not None
        revision = self.seen.progress.intent_seq
        await self.seen.until(
            lambda: self.seen.revision() >= revision and self.seen.intents[subject][0] <= revision
        )
        times = [at for _, at in self.seen.applied.values()]
        read = self.seen.intents[subject][1]
        points = (stored, read, planned, min(times), max(times))
        return [(at - start) * 1000 for at in points]

    async def change_until_barrier(self) -> float:
        """Milliseconds; as the agent and `dunlin wait` ask."""
        start = time.perf_counter()
        seq, _ = await self._publish()
        await self.in_force(seq)
        return (time.perf_counter() - start) * 1000

    async def in_force(self, fact_seq: int) -> None:
        """Until every switch holds all that this fact and those before it lead to."""
        await self.seen.until(lambda: self._planned(fact_seq))
        assert self.seen.progress is not None
        revision = self.seen.progress.intent_seq
        async with asyncio.TaskGroup() as group:
            for node in range(1, SWITCHES + 1):
                group.create_task(self._barrier(f"n{node}", revision))

    async def _barrier(self, node: str, revision: int) -> None:
        request = BarrierRequest(node=node, revision=revision, epoch=self._epoch)
        data = await self.bus.request(
            subjects.rpc("flowctl", "barrier", node), wire.encode(request), timeout_s=DEADLINE_S
        )
        assert wire.decode(data, BarrierReply).applied, data

    async def bare_bundles(self, count: int) -> float:
        """Milliseconds of one group's change on so many bridges, its bytes ready."""
        start = time.perf_counter()
        commits = (session.commit(self._bundle) for session in self._bare[:count])
        for result in await asyncio.gather(*commits):
            assert result.applied, result.errors
        return (time.perf_counter() - start) * 1000


def _bundle() -> Bundle:
    """A modification of one Service's group."""
    program = PipelineCompiler().compile(world.service_intent(1, ENDPOINTS), None)
    changes = ChangeSet()
    changes.put(program.groups[0], held=True, who=world.service_intent(1, 0).id)
    return Bundle(encode_phases(changes, OWN_XID)[:1])


def _process(module: str, directory: Path, **env: str) -> subprocess.Popen[bytes]:
    log = (directory / f"{module}.log").open("wb")
    return subprocess.Popen(
        [sys.executable, "-m", module], env=os.environ | env, stdout=log, stderr=log
    )


@asynccontextmanager
async def control_plane(switch: ovs.Ovs, services: int) -> AsyncIterator[Bench]:
    """Everything started, loaded, and ended afterwards."""
    nats = NatsServer(switch.directory / "nats")
    nats.start()
    processes: list[subprocess.Popen[bytes]] = []
    tasks: list[asyncio.Task[None]] = []
    try:
        bus = await connect(FlowctlSettings(nats_url=nats.url, replica="bench"))
        await bus.ensure_streams()
        common = {"NATS_URL": nats.url, "DUNLIN_LOG_LEVEL": "warning"}
        processes += [
            _process("dunlin_ipam", switch.directory, **common),
            _process("dunlin_planner", switch.directory, **common),
            _process("dunlin_flowctl", switch.directory, **common),
        ]
        for number in range(1, SWITCHES + 1):
            await asyncio.to_thread(switch.add_bridge, f"br{number}", number, "tcp:127.0.0.1:6653")
        async with AsyncExitStack() as stack:
            bare = await _bare_sessions(stack, switch, services)
            bench = Bench(bus, bare, services)
            tasks += [
                asyncio.create_task(bench.seen.follow_intents(bus)),
                asyncio.create_task(bench.seen.follow_state(bus)),
            ]
            await bench.load()
            at_rest()
            yield bench
    finally:
        for task in tasks:
            task.cancel()
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(DEADLINE_S)
        await bus.close()
        nats.stop()


async def _bare_sessions(
    stack: AsyncExitStack, switch: ovs.Ovs, services: int
) -> list[TimedSession]:
    """Bridges that hold the same tables and that flowctl knows nothing of."""
    known, clock = Flowctl(), Clock()
    intents: list[AnyIntent] = world.intents(services, ENDPOINTS)
    known.read([wire.encode(intent) for intent in intents], clock)
    sessions = []
    for number in range(1, BARE_BRIDGES + 1):
        name = f"bare{number}"
        await asyncio.to_thread(switch.add_bridge, name, 1000 + number)
        await known.program("n1", switch.management(name), clock)
        sessions.append(await stack.enter_async_context(session_with(switch.management(name))))
    return sessions


async def measure(
    switch: ovs.Ovs, options: Options, table: Table, stages: Table, services: int
) -> None:
    """Every way once a change, in turns."""
    changes = 20 if options.quick else 60
    async with control_plane(switch, services) as bench:
        for number in range(options.rounds(5)):
            options.progress(f"{table.title}: round {number + 1}")
            samples: dict[str, list[float]] = {BARE: [], BARE_ALL: [], BARRIER: [], APPLIED: []}
            points: list[list[float]] = []
            for _ in range(changes):
                samples[BARE].append(await bench.bare_bundles(1))
                samples[BARE_ALL].append(await bench.bare_bundles(BARE_BRIDGES))
                points.append(await bench.change_until_applied())
                samples[APPLIED].append(points[-1][-1])
                await asyncio.sleep(PAUSE_S)
                samples[BARRIER].append(await bench.change_until_barrier())
                await asyncio.sleep(PAUSE_S)
            for name, values in samples.items():
                _add(table.row(name), values)
            for index, stage in enumerate(STAGES):
                _add(stages.row(stage), [point[index] for point in points])
        table.notes.append(f"{bench.changes} changes; {services} Services x {ENDPOINTS}")


def _add(row: Row, values: list[float]) -> None:
    row.add(p50=percentile(values, 0.5), p99=percentile(values, 0.99))


def run(options: Options) -> list[Table]:
    """Raises Unavailable."""
    metrics = [Metric("p50", "ms", digits=2), Metric("p99", "ms", digits=2)]
    services = SERVICES // 10 if options.quick else SERVICES
    table = Table("One EndpointSlice changes", metrics, BARE)
    stages = Table("The same, when each stage is over", metrics, STAGES[-1])
    with ovs.running() as switch:
        netns.run_in(
            switch.namespace,
            lambda: uvloop.run(measure(switch, options, table, stages, services)),
        )
    return [table, stages]
