"""Which UDP connections in zone MAIN lead where no Service or hostPort sends them: pure."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final, NamedTuple

from dunlin.events.intents import (
    HostPortIntent,
    LocalServiceIntent,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin.model.addresses import IPAddress
from dunlin.model.ids import IntentId
from dunlin.openflow.codec import CtFlush, CtTuple
from dunlin.openflow.fields import IP_UDP
from dunlin.pipeline.base import SwitchContext
from dunlin.pipeline.layout import SERVICE, Zone
from dunlin.pipeline.udp import NOTHING, UdpService, udp_host_port, udp_service

Address = tuple[str, int]
"""Address and port as conntrack's dump writes them: never parsed for what is not of interest."""

_LINE: Final = re.compile(
    r"udp,orig=\(src=([^,]+),dst=([^,]+),sport=(\d+),dport=(\d+)\),"
    r"reply=\(src=([^,]+),dst=[^,]+,sport=(\d+),dport=\d+\)"
)
_ZONE: Final = re.compile(r",zone=(\d+)")
_MARK: Final = re.compile(r",mark=(\d+)")


class Entry(NamedTuple):
    """
    One UDP connection: as its client asked, and who answers.

    `service`: the switch has marked it as one of a Service or a hostPort.
    """

    src: str
    src_port: int
    dst: str
    dst_port: int
    answers: str
    answers_port: int
    service: bool

    @property
    def flush(self) -> CtFlush:
        """Names no connection that has been made anew since, with another who answers."""
        orig = CtTuple(ip_address(self.src), ip_address(self.dst), self.src_port, self.dst_port)
        reply = CtTuple(src=ip_address(self.answers), src_port=self.answers_port)
        return CtFlush(int(Zone.MAIN), IP_UDP, orig, reply)


def parse(dump: str) -> Iterator[Entry]:
    """The UDP entries of zone MAIN of a `dpctl/dump-conntrack`; other lines are passed over."""
    for line in dump.splitlines():
        if not line.startswith("udp,"):
            continue
        found, zone = _LINE.match(line), _ZONE.search(line)
        if found is None or zone is None or int(zone[1]) != Zone.MAIN:
            continue
        mark = _MARK.search(line)
        service = bool(mark and int(mark[1]) & SERVICE.value)
        src, dst, sport, dport, answers, answers_port = found.groups()
        yield Entry(src, int(sport), dst, int(dport), answers, int(answers_port), service)


@dataclass(slots=True)
class Connections:
    """
    The UDP Services and hostPorts of one node, from intents.

    What each has is computed when it changes. `_host_ports`: by the ids of their intents, which no
    key of a Service looks like.
    """

    switch: SwitchIntent | None = None
    _services: dict[str, ServicePortIntent] = field(default_factory=dict)
    _local: dict[str, LocalServiceIntent] = field(default_factory=dict)
    _host_ports: dict[str, HostPortIntent] = field(default_factory=dict)
    _known: dict[str, UdpService] = field(default_factory=dict)
    _frontends: dict[Address, set[str]] = field(default_factory=dict)
    _endpoints: dict[str, frozenset[Address]] = field(default_factory=dict)

    def put(
        self, intent: ServicePortIntent | LocalServiceIntent | HostPortIntent | SwitchIntent
    ) -> None:
        """A newer version of an intent."""
        if isinstance(intent, SwitchIntent):
            before, self.switch = self.switch, intent
            if before is None or _addresses(before) != _addresses(intent):
                for key in (*self._services, *self._host_ports):
                    self._update(key)
        elif isinstance(intent, HostPortIntent):
            self._host_ports[intent.id] = intent
            self._update(intent.id)
        elif isinstance(intent, ServicePortIntent):
            self._services[intent.key] = intent
            self._update(intent.key)
        else:
            self._local[intent.key] = intent
            self._update(intent.key)

    def remove(self, intent_id: IntentId) -> None:
        """An intent is gone."""
        _, kind, key = intent_id.split("/", 2)
        if kind == "switch":
            self.switch = None
            return
        if kind == "hostport":
            self._host_ports.pop(intent_id, None)
            self._update(intent_id)
            return
        there = self._services if kind == "service" else self._local
        there.pop(key, None)
        self._update(key)

    def clear(self) -> None:
        """Nothing is known."""
        self.switch = None
        for part in (self._services, self._local, self._host_ports):
            part.clear()
        for found in (self._known, self._frontends, self._endpoints):
            found.clear()

    def stale(self, entries: Iterable[Entry]) -> frozenset[Entry]:
        """Those that should not be; none as long as the switch is not known."""
        if self.switch is None:
            return frozenset()
        return frozenset(entry for entry in entries if self._is_stale(entry))

    def _is_stale(self, entry: Entry) -> bool:
        owners = self._frontends.get((entry.dst, entry.dst_port))
        if owners is None:
            # Marked: for a Service that was there. Else it is not our business.
            return entry.service
        return not any((entry.answers, entry.answers_port) in self._endpoints[o] for o in owners)

    def _now(self, key: str) -> UdpService:
        if key in self._host_ports:
            own = SwitchContext(self.switch).own_addresses if self.switch else ()
            return udp_host_port(self._host_ports[key], own)
        node_ips: tuple[IPAddress, ...] = self.switch.node_port_ips if self.switch else ()
        return udp_service(self._services.get(key), self._local.get(key), node_ips)

    def _update(self, key: str) -> None:
        """What a ServicePort or hostPort has now; the node's own part alone is of no account."""
        new = self._now(key)
        old = self._known.pop(key, NOTHING)
        for address in old.frontends - new.frontends:
            owners = self._frontends[_text(address)]
            owners.discard(key)
            if not owners:
                del self._frontends[_text(address)]
        self._endpoints.pop(key, None)
        if new.frontends:
            self._known[key] = new
            self._endpoints[key] = frozenset(map(_text, new.endpoints))
        for address in new.frontends:
            self._frontends.setdefault(_text(address), set()).add(key)


def _addresses(switch: SwitchIntent) -> tuple[tuple[IPAddress, ...], ...]:
    return switch.node_port_ips, SwitchContext(switch).own_addresses


def _text(address: tuple[IPAddress, int]) -> Address:
    return str(address[0]), address[1]
