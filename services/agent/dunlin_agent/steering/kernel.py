"""
Rules and routes of the node's kernel for its own processes: as requests, and read back.

The kernel asks its table of local addresses first (rule 0): to steer what goes to an address of the
node itself, that rule moves behind ours. The new one is there before the old one goes, so the node
is never without, and it says that the kernel made it, so that tools which tidy up leave it alone.
Source: rtnetlink(7), ip-rule(8), linux/fib_rules.h.
"""

import socket
from collections.abc import Iterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Final

from dunlin.events.facts import Protocol
from dunlin.model.addresses import IPAddress
from dunlin.pipeline.families import PROTOCOL_NUMBERS
from dunlin_agent.adapters import rtnetlink as rt
from dunlin_agent.adapters.gateway import ROUTER_IPS
from dunlin_agent.adapters.uplink import Route, route_request
from dunlin_agent.steering.core import TABLE_BASE, Rule, Steered, SteeredRoute

# Ours, apart from the gateway's own routes (100): linux/rtnetlink.h leaves both free.
RTPROT_STEERING: Final = 101
RTPROT_KERNEL: Final = 2
RT_TABLE_LOCAL: Final = 255
FR_ACT_TO_TBL: Final = 1
LOCAL_FIRST, LOCAL_BEHIND = 0, 1
"""Preferences of the rule for local addresses. Ours have 0, and nobody else gets between."""
AT_ONCE_MAX: Final = 256
EEXIST, ENOENT, ESRCH = 17, 2, 3
FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_PROTOCOLS: Final = {number: protocol for protocol, number in PROTOCOL_NUMBERS.items()}


class SteeringError(Exception):
    """The kernel refused something; what it did not refuse is done."""


class SteeringKernel:
    """In the network namespace `netns` (None: this process's own); blocking, for one thread."""

    def __init__(self, ifname: str, netns: Path | None = None) -> None:
        """`ifname`: the gateway port; it need not be there yet."""
        self._ifname = ifname
        self._netlink = rt.Rtnetlink(netns)

    def close(self) -> None:
        """The kernel's state stays."""
        self._netlink.close()

    def read(self) -> Steered:
        """
        What is there of ours.

        Raises:
            SteeringError: the kernel does not say.
        """
        try:
            rules = [r for v in FAMILIES for m in self._rules(v) if (r := _rule_of(v, m))]
            return Steered(frozenset(rules), frozenset(self._routes()))
        except OSError as error:
            raise SteeringError(str(error)) from error

    def write(self, wanted: Steered, present: Steered) -> None:
        """
        Make `present` (as `read` says) `wanted`: new routes, new rules, old rules, old routes.

        Raises:
            SteeringError: something was refused; all the rest is done.
        """
        found = self._netlink.link(self._ifname)
        if found is None and wanted.routes:
            raise SteeringError(f"no device {self._ifname}")
        index = found["index"] if found is not None else 0
        come, gone = wanted.without(present), present.without(wanted)
        failures: list[str] = []
        self._apply(failures, (_route(rt.RTM_NEWROUTE, r, index) for r in come.routes))
        for version in FAMILIES:
            rules = [r for r in come.rules if r.version == version]
            if any(r.version == version for r in wanted.rules):
                self._local_behind(failures, version)
                self._apply(failures, (_rule(rt.RTM_NEWRULE, r) for r in rules))
            else:
                self._local_first(failures, version)
        self._apply(failures, (_rule(rt.RTM_DELRULE, r) for r in gone.rules))
        self._apply(failures, (_route(rt.RTM_DELROUTE, r, index) for r in gone.routes if index))
        if failures:
            raise SteeringError("; ".join(failures[:5]))

    # --- the rule for local addresses -------------------------------------------------------------

    def _local_behind(self, failures: list[str], version: int) -> None:
        """Add the one behind ours; only when it is seen to be there does the first one go."""
        if LOCAL_BEHIND not in self._local(version):
            self._apply(failures, [_local(rt.RTM_NEWRULE, version, LOCAL_BEHIND)])
        if {LOCAL_FIRST, LOCAL_BEHIND} <= self._local(version):
            self._apply(failures, [_local(rt.RTM_DELRULE, version, LOCAL_FIRST)])

    def _local_first(self, failures: list[str], version: int) -> None:
        """The way back, in the same manner."""
        if LOCAL_FIRST not in self._local(version):
            self._apply(failures, [_local(rt.RTM_NEWRULE, version, LOCAL_FIRST)])
        if {LOCAL_FIRST, LOCAL_BEHIND} <= self._local(version):
            self._apply(failures, [_local(rt.RTM_DELRULE, version, LOCAL_BEHIND)])

    def _local(self, version: int) -> set[int]:
        """Preferences of the rules for local addresses that hold for every packet."""
        found = set()
        for message in self._rules(version):
            attrs = rt.attributes(message)
            table = attrs.get("FRA_TABLE", message["table"])
            plain = not attrs.keys() & {"FRA_IIFNAME", "FRA_FWMARK", "FRA_IP_PROTO"}
            if table == RT_TABLE_LOCAL and plain and not message["dst_len"] | message["src_len"]:
                found.add(attrs.get("FRA_PRIORITY", 0))
        return found

    # --- requests ---------------------------------------------------------------------------------

    def _apply(self, failures: list[str], requests: Any) -> None:
        """All of them, some at once; refusals are noted, and the others go on."""
        waiting = list(requests)
        for start in range(0, len(waiting), AT_ONCE_MAX):
            try:
                self._netlink.apply(*waiting[start : start + AT_ONCE_MAX])
            except OSError as error:
                failures.append(str(error))

    def _rules(self, version: int) -> list[Any]:
        message = rt.rule_message(family=FAMILIES[version])
        return self._netlink.dump(rt.RTM_GETRULE, message)

    def _routes(self) -> Iterator[SteeredRoute]:
        for version, family in FAMILIES.items():
            # The kernel's strict checking makes the protocol a filter: only ours come.
            message = rt.route_message(family=family, proto=RTPROT_STEERING)
            for found in self._netlink.dump(rt.RTM_GETROUTE, message):
                attrs = rt.attributes(found)
                table = attrs.get("RTA_TABLE", found["table"])
                if found["proto"] != RTPROT_STEERING or "RTA_DST" not in attrs:
                    continue
                source = attrs.get("RTA_PREFSRC", "0.0.0.0" if version == 4 else "::")  # noqa: S104 - none
                yield SteeredRoute(table, ip_address(attrs["RTA_DST"]), ip_address(source))


def _rule(kind: int, rule: Rule) -> rt.Request:
    """Of packets that this host itself sends: `iif lo`."""
    first, last = rule.ports
    attrs = [
        ("FRA_PRIORITY", LOCAL_FIRST),
        ("FRA_IIFNAME", "lo"),
        ("FRA_IP_PROTO", PROTOCOL_NUMBERS[rule.protocol]),
        ("FRA_DPORT_RANGE", f"{first}:{last}"),
        ("FRA_TABLE", rule.table),
        ("FRA_PROTOCOL", RTPROT_STEERING),
    ]
    message = rt.rule_message(attrs, family=FAMILIES[rule.version], action=FR_ACT_TO_TBL)
    what = f"rule IPv{rule.version} {rule.protocol} {first}-{last}"
    adding = kind == rt.RTM_NEWRULE
    accept = (EEXIST,) if adding else (ENOENT, ESRCH)
    return rt.Request(kind, rt.ADD if adding else 0, message, what, accept)


def _rule_of(version: int, message: Any) -> Rule | None:
    """One of ours; None: another's."""
    attrs = rt.attributes(message)
    protocol: Protocol | None = _PROTOCOLS.get(attrs.get("FRA_IP_PROTO", 0))
    ports = attrs.get("FRA_DPORT_RANGE")
    if attrs.get("FRA_PROTOCOL") != RTPROT_STEERING or protocol is None or ports is None:
        return None
    first, _, last = str(ports).partition(":")
    table = attrs.get("FRA_TABLE", message["table"])
    return Rule(version, protocol, (int(first), int(last)), table)


def _local(kind: int, version: int, preference: int) -> rt.Request:
    attrs = [
        ("FRA_PRIORITY", preference),
        ("FRA_TABLE", RT_TABLE_LOCAL),
        ("FRA_PROTOCOL", RTPROT_KERNEL),
    ]
    adding = kind == rt.RTM_NEWRULE
    if not adding:
        attrs.pop()  # Whoever made it.
    message = rt.rule_message(
        attrs, family=FAMILIES[version], action=FR_ACT_TO_TBL, table=RT_TABLE_LOCAL
    )
    what = f"rule IPv{version} {preference} for local addresses"
    accept = (EEXIST,) if adding else (ENOENT, ESRCH)
    return rt.Request(kind, rt.ADD if adding else 0, message, what, accept)


def _route(kind: int, route: SteeredRoute, index: int) -> rt.Request:
    """Through the virtual router behind the gateway port, as all of the node's way to Pods."""
    ip: IPAddress = route.ip
    value = Route(
        dst=ip_network(ip),
        gateway=ROUTER_IPS[ip.version],
        source=route.source,
        table=route.table,
        protocol=RTPROT_STEERING,
        scope=0,
        on_link=ip.version == 4,
    )
    adding = kind == rt.RTM_NEWROUTE
    return route_request(
        kind, rt.REPLACE if adding else 0, value, index, () if adding else (ESRCH,)
    )


assert TABLE_BASE > RT_TABLE_LOCAL
