"""
A packet's way through flows and groups, computed: what it meets, becomes, and where it leaves.

Pure, and strict: what it does not know, or what OVS leaves undefined (two flows of one priority
that both match and differ), raises `CannotTrace` instead of a guess. Held to OVS's own
ofproto/trace by a contract test.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dunlin.openflow.conntrack import Conntrack
from dunlin.openflow.flow import (
    Bucket,
    Flow,
    Group,
    Program,
)
from dunlin.openflow.packet import (
    CannotTrace,
    Packet,
)
from dunlin.openflow.render import NUMBERS, Names, flow_text
from dunlin.openflow.trace_run import Choose, Left, Run, Step, first_bucket

__all__ = [
    "CannotTrace", "Choose", "Conntrack", "Left", "Step", "Trace", "Tracer", "first_bucket",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Trace:
    """
    What became of one packet.

    `left`: in order; empty: dropped. `conntrack`: as it is after, for the next packet. `learned`:
    flows that learn() made. `buckets`: the buckets taken, in order, as (group id, bucket id).
    """

    steps: tuple[Step, ...]
    left: tuple[Left, ...]
    conntrack: Conntrack
    learned: tuple[Flow, ...] = ()
    buckets: tuple[tuple[int, int], ...] = ()

    @property
    def dropped(self) -> bool:
        """It leaves nowhere."""
        return not self.left

    @property
    def ports(self) -> tuple[int, ...]:
        """Where it leaves."""
        return tuple(one.port for one in self.left)

    @property
    def flows(self) -> tuple[Flow, ...]:
        """Every flow that it met, in order."""
        return tuple(step.flow for step in self.steps if step.flow is not None)

    def text(self, names: Names = NUMBERS) -> str:
        """A line for each step, indented by depth."""
        lines = []
        for step in self.steps:
            what = flow_text(step.flow, names) if step.flow else step.why
            lines.append(f"{'  ' * step.depth}{names.table(step.table)}: {what}\n")
        ends = ", ".join(str(port) for port in self.ports) or "drop"
        return "".join(lines) + f"-> {ends}\n"


class Tracer:
    """
    A switch's flows and groups, ready to trace many packets.

    Raises:
        CannotTrace: two flows have one key, or two groups one id.
    """

    def __init__(self, flows: Iterable[Flow] = (), groups: Iterable[Group] = ()) -> None:
        self._tables: dict[int, list[Flow]] = defaultdict(list)
        self._groups: dict[int, Group] = {}
        keys = set()
        for flow in flows:
            if flow.key in keys:
                raise CannotTrace(f"two flows have the key {flow.key}")
            keys.add(flow.key)
            self._tables[flow.table].append(flow)
        for table in self._tables.values():
            table.sort(key=lambda flow: -flow.priority)
        for group in groups:
            if group.group_id in self._groups:
                raise CannotTrace(f"two groups have the id {group.group_id:#x}")
            self._groups[group.group_id] = group

    @classmethod
    def of(cls, program: Program) -> "Tracer":
        """Of a program's flows and groups."""
        return cls(program.flows, program.groups)

    def trace(
        self,
        packet: Packet,
        conntrack: Conntrack | None = None,
        choose: Choose = first_bucket,
        learned: Sequence[Flow] = (),
    ) -> Trace:
        """
        One packet from table 0 on.

        Args:
            conntrack: as earlier packets left it (`Trace.conntrack`); it is not changed.
            learned: flows that earlier packets made (`Trace.learned`).
        Raises:
            CannotTrace: something here that the tracer does not know or OVS does not define.
        """
        run = Run(self._tables, self._groups, (conntrack or Conntrack()).copy(), choose, learned)
        run.table(0, dict(packet), 0)
        return Trace(
            tuple(run.steps), tuple(run.left), run.conntrack, tuple(run.learned), tuple(run.buckets)
        )

    def trace_all(
        self, packet: Packet, conntrack: Conntrack | None = None, most: int | None = None
    ) -> tuple[Trace, ...]:
        """
        One trace for every way that select groups can go, or for the first `most` of them.

        Raises:
            CannotTrace: as `trace`.
        """
        found: list[Trace] = []
        pending: list[tuple[int, ...]] = [()]
        while pending and (most is None or len(found) < most):
            prefix = pending.pop()
            taken: list[int] = []

            def choose(
                _group: Group,
                buckets: tuple[Bucket, ...],
                _packet: Packet,
                prefix: tuple[int, ...] = prefix,
                taken: list[int] = taken,
            ) -> Bucket:
                index = prefix[len(taken)] if len(taken) < len(prefix) else 0
                if len(taken) >= len(prefix):
                    pending.extend((*taken, other) for other in range(len(buckets) - 1, 0, -1))
                taken.append(index)
                return buckets[index]

            found.append(self.trace(packet, conntrack, choose))
        return tuple(found)
