"""
Two Pods that talk, beside others that don't: what ovs-vswitchd pays for each ordinary port.

Open vSwitch as Debian starts it, and with what Dunlin preloads (ADR 0043); userspace TSO in both,
one flow that joins the two Pods. No Dunlin runs: it is the switch's own cost.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial

from bench import baseline, ovs
from bench.load import Tools, tools
from bench.measure import Metric, Options, Table, Unavailable, take_turns
from bench.throughput import METRICS, measure
from dunlin_lab import links, netns, preload

IDLE = (0, 30, 100)
CPU = Metric("ovs-vswitchd's main thread, CPU a request/response", "us", digits=0)
DEBIAN, DUNLIN = "as Debian starts it", "with Dunlin's preload"


class Site:
    """An Open vSwitch with two Pods, and more and more idle ports."""

    def __init__(self, switch: ovs.Ovs, made: baseline.Networks, name: str) -> None:
        self._switch = switch
        self._crowd = made.make(f"{name}crowd")
        self._idle = 0
        self.client, self.server = (self._pod(made, name, number) for number in (1, 2))
        ends = {1: 2, 2: 1}
        for here, there in ends.items():
            switch.ofctl("add-flow", "br0", f"in_port={here},actions=output:{there}")

    def _pod(self, made: baseline.Networks, name: str, number: int) -> baseline.Place:
        if number == 1:
            self._switch.add_bridge("br0", 1)
        place = made.make(f"{name}{number}")
        made.join(place, f"10.204.0.{number}/24", self._switch.namespace, f"p{number}")
        port = ("add-port", "br0", f"p{number}", "--", "set", "interface", f"p{number}")
        self._switch.vsctl(*port, f"ofport_request={number}")
        return baseline.Place(place, f"10.204.0.{number}")

    def fill(self, count: int) -> None:
        """So many idle Pods."""
        if count == self._idle:
            return

        def make() -> None:
            with links.route() as ipr:
                for number in range(self._idle, count):
                    links.veth(ipr, f"i{number}", f"e{number}", self._crowd, baseline.MTU_BYTES)
                    links.up(ipr, f"i{number}")

        def carrier() -> None:
            with links.route() as ipr:
                for number in range(self._idle, count):
                    links.up(ipr, f"e{number}")

        netns.run_in(self._switch.namespace, make)
        netns.run_in(self._crowd, carrier)
        new = range(self._idle, count)
        self._switch.vsctl(*(w for i in new for w in ("--", "add-port", "br0", f"i{i}")))
        self._idle = count

    def measure(self, load: Tools, seconds: float) -> Mapping[str, float]:
        """One round."""
        found = dict(measure(load, self.client.netns, self.server.ip, seconds))
        pid = int((self._switch.directory / "ovs-vswitchd.pid").read_text())
        before = ovs.main_thread_us(pid)
        rr = load.load(self.client.netns, "rr", self.server.ip, str(seconds))
        found[CPU.name] = (ovs.main_thread_us(pid) - before) / (rr["per_s"] * seconds)
        return found


@contextmanager
def sites() -> Iterator[Mapping[str, Site]]:
    """Both, gone afterwards."""
    if preload.JEMALLOC not in str(preload.environment()):
        raise Unavailable("no jemalloc (Debian: libjemalloc2)")
    ways = {DEBIAN: ("a", {}), DUNLIN: ("b", preload.environment())}
    with ExitStack() as stack:
        made = stack.enter_context(baseline.networks())
        found = {}
        for way, (name, more) in ways.items():
            switch = stack.enter_context(ovs.running(f"-{name}", more, userspace_tso=True))
            found[way] = Site(switch, made, name)
        yield found


def run(options: Options) -> list[Table]:
    """Raises Unavailable."""
    seconds = 0.5 if options.quick else 2.0
    tables = []
    with ExitStack() as stack:
        load = stack.enter_context(tools())
        ways = stack.enter_context(sites())
        for site in ways.values():
            load.serve(stack, site.server.netns)
            baseline.widen_ports(site.client.netns)
        for idle in IDLE[::2] if options.quick else IDLE:
            title = f"Two Pods of one switch, {idle} idle ones beside"
            table = Table(title, (*METRICS, CPU), DEBIAN)
            for site in ways.values():
                site.fill(idle)
            turns: dict[str, Callable[[], Mapping[str, float]]] = {
                name: partial(site.measure, load, seconds) for name, site in ways.items()
            }
            take_turns(turns, table, options.rounds(5), options.progress)
            tables.append(table)
    return tables
