"""Rules and routes of the node's own processes, in a real kernel."""

import os
import socket
import subprocess
import threading
import uuid
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from dunlin.events.facts import Protocol
from dunlin_agent.steering.core import TABLE_BASE, Rule, Steered, SteeredRoute
from dunlin_agent.steering.kernel import SteeringError, SteeringKernel
from dunlin_lab import netns
from tests.dataplane.agent.ovs_node import run

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

OWN, OWN6 = ip_address("192.0.2.5"), ip_address("2001:db8::5")
VIP, VIP6 = ip_address("198.51.100.7"), ip_address("2001:db8:f::7")
RANGE = (30000, 32767)
HTTP = TABLE_BASE | 6 << 16 | 80
WANTED = Steered(
    frozenset({
        *(Rule(v, p, RANGE, TABLE_BASE) for v in (4, 6) for p in Protocol),
        *(Rule(v, Protocol.TCP, (80, 80), HTTP) for v in (4, 6)),
    }),
    frozenset({
        SteeredRoute(TABLE_BASE, OWN, OWN),
        SteeredRoute(TABLE_BASE, OWN6, OWN6),
        SteeredRoute(HTTP, VIP, OWN),
        SteeredRoute(HTTP, VIP6, OWN6),
    }),
)  # fmt: skip
UNTOUCHED = ("0: from all lookup local", "32766: from all lookup main")


class Host:
    """A namespace with a gateway port and an uplink; no OVS."""

    def __init__(self, name: str) -> None:
        """Make it."""
        self.name = name
        run("ip", "netns", "add", name)
        for words in (
            "link set lo up",
            "link add dunlin-gw0 type veth peer name beyond",
            "link set dunlin-gw0 up",
            "link set beyond up",
            "link add ext type veth peer name other",
            "link set ext up",
            "link set other up",
            "addr add 192.0.2.5/24 dev ext",
            "addr add 2001:db8::5/64 dev ext nodad",
        ):
            run("ip", *words.split(), netns=name)
        self.kernel = SteeringKernel("dunlin-gw0", netns.path_of(name))

    def bring(self, wanted: Steered) -> None:
        """As the agent does."""
        present = self.kernel.read()
        if present != wanted:
            self.kernel.write(wanted, present)

    def rules(self, family: str) -> list[str]:
        """`ip rule`, with single spaces."""
        lines = run("ip", family, "rule", netns=self.name).splitlines()
        return [" ".join(line.split()) for line in lines]

    def way(self, ip: object, proto: str, port: int) -> str:
        """The device and source of a process's packet."""
        words = ("ip", "route", "get", str(ip), "ipproto", proto, "dport", str(port))
        return run(*words, netns=self.name).splitlines()[0]


def steered(way: str, table: int, source: object) -> bool:
    """`ip route get` says that it goes to br-int by that table."""
    return f"dev dunlin-gw0 table {table} " in way and f" src {source} " in f"{way} "


@pytest.fixture
def host() -> Iterator[Host]:
    """Removed at the end."""
    made = Host(f"st-{uuid.uuid4().hex[:6]}")
    yield made
    made.kernel.close()
    run("ip", "netns", "del", made.name)


def test_what_is_steered_and_what_is_not(host: Host) -> None:
    """The ports of Services by the gateway port, from the node's address; nothing else."""
    host.bring(WANTED)
    assert host.kernel.read() == WANTED
    for ip, vip in ((OWN, VIP), (OWN6, VIP6)):
        for proto in ("tcp", "udp"):  # of SCTP `ip route get` cannot ask
            assert steered(host.way(ip, proto, 30080), TABLE_BASE, ip)
            assert "dev lo" in host.way(ip, proto, 29999)
        assert steered(host.way(vip, "tcp", 80), HTTP, ip)
    unreachable = run("ip", "route", "get", str(VIP), "ipproto", "udp", "dport", "80",
                      netns=host.name, check=False)  # fmt: skip
    assert "dunlin-gw0" not in unreachable
    assert "dev lo" in host.way("127.0.0.1", "tcp", 30080)


def test_a_packet_that_comes_in_is_not_steered(host: Host) -> None:
    """To the node's own process, as ever: the rules are of what the host itself sends."""
    host.bring(WANTED)
    words = f"route get {OWN} from 192.0.2.77 iif ext ipproto tcp dport 30080".split()
    assert run("ip", *words, netns=host.name).startswith("local ")


def test_the_way_back_leaves_nothing(host: Host) -> None:
    """The rule for local addresses is the first again, and no rule or route is ours."""
    host.bring(WANTED)
    for family in ("-4", "-6"):
        rules = host.rules(family)
        assert rules[-1].startswith("3276")
        local = [i for i, rule in enumerate(rules) if rule.endswith("lookup local")]
        assert local == [4], rules
    host.bring(Steered())
    for family in ("-4", "-6"):
        rules = host.rules(family)
        assert tuple(rules[:2]) == UNTOUCHED
    assert not host.kernel.read()


def test_interrupted_anywhere_it_is_finished_next_time(host: Host) -> None:
    """An agent that died between two of its requests left one of these."""
    for left in ("rule add pref 1 lookup local", "rule add pref 1 lookup local protocol kernel"):
        run("ip", *left.split(), netns=host.name)
        host.bring(WANTED)
        assert host.kernel.read() == WANTED
        assert [r for r in host.rules("-4") if r.endswith("lookup local")] == [
            "1: from all lookup local"
        ]
        run("ip", "rule", "add", "pref", "0", "lookup", "local", netns=host.name)
        host.bring(Steered())
        assert tuple(host.rules("-4")[:2]) == UNTOUCHED


def test_tidied_up_by_others(host: Host) -> None:
    """What a tool has removed comes back; routes of other makers stay."""
    host.bring(WANTED)
    run("ip", "route", "add", "203.0.113.0/24", "dev", "ext", "table", "77", netns=host.name)
    run("ip", "rule", "del", "pref", "0", "iif", "lo", "ipproto", "udp",
        "dport", "30000-32767", netns=host.name)  # fmt: skip
    run("ip", "route", "flush", "table", str(HTTP), netns=host.name)
    assert host.kernel.read() != WANTED
    host.bring(WANTED)
    assert host.kernel.read() == WANTED
    assert "203.0.113.0/24" in run("ip", "route", "show", "table", "77", netns=host.name)


def test_one_refusal_does_not_hold_up_the_rest(host: Host) -> None:
    """The error names it; every other address is steered."""
    nobody = SteeredRoute(HTTP, ip_address("198.51.100.8"), ip_address("203.0.113.1"))
    wanted = Steered(WANTED.rules, WANTED.routes | {nobody})
    with pytest.raises(SteeringError, match=r"198\.51\.100\.8"):
        host.bring(wanted)
    assert host.kernel.read() == WANTED


def test_without_the_gateway_port_nothing_happens(host: Host) -> None:
    """OVS is not there: an error, and the rules stay as they were."""
    run("ip", "link", "del", "dunlin-gw0", netns=host.name)
    with pytest.raises(SteeringError, match="dunlin-gw0"):
        host.bring(WANTED)
    assert tuple(host.rules("-4")[:2]) == UNTOUCHED


def test_the_host_is_never_without_its_own_addresses(host: Host) -> None:
    """Connections to itself all the while the rules come and go: none fails."""
    done, failed = threading.Event(), list[str]()
    made = [0]

    def connect() -> None:
        with socket.create_server((str(OWN), 8080)) as server:
            server.settimeout(5)
            while not done.is_set():
                try:
                    with socket.create_connection((str(OWN), 8080), 2):
                        server.accept()[0].close()
                        made[0] += 1
                except OSError as error:
                    failed.append(str(error))

    future = netns.start_in(netns.path_of(host.name), connect)
    for _ in range(50):
        host.bring(WANTED)
        host.bring(Steered())
    done.set()
    future.result(timeout=10)
    assert not failed
    assert made[0] > 50


@pytest.mark.parametrize("count", [3000])
def test_many_addresses(host: Host, count: int) -> None:
    """One rule and as many routes; a change of one is one request."""
    first = int(VIP)
    routes = frozenset(SteeredRoute(HTTP, ip_address(first + i), OWN) for i in range(count))
    wanted = Steered(frozenset({Rule(4, Protocol.TCP, (80, 80), HTTP)}), routes)
    host.bring(wanted)
    assert host.kernel.read() == wanted
    fewer = Steered(wanted.rules, frozenset(list(routes)[1:]))
    host.kernel.write(fewer, wanted)
    assert host.kernel.read() == fewer


def test_the_oracle_can_fail() -> None:
    """`ip rule` of an untouched namespace says what UNTOUCHED says, and not more."""
    name = f"st-{uuid.uuid4().hex[:6]}"
    run("ip", "netns", "add", name)
    try:
        lines = subprocess.run(
            ["ip", "-n", name, "rule"], capture_output=True, text=True, check=True, timeout=10
        ).stdout.splitlines()
        assert tuple(" ".join(line.split()) for line in lines[:2]) == UNTOUCHED
    finally:
        run("ip", "netns", "del", name)
