"""What every compiler of an intent shares: the switch's own facts and short forms of flows."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from msgspec import structs

from dunlin.events.intents import SwitchIntent
from dunlin.model.addresses import GATEWAY_MAC, IPAddress, MacAddress
from dunlin.model.ids import IntentId
from dunlin.openflow.cookie import cookie_of
from dunlin.openflow.flow import (
    Action,
    Ct,
    Flow,
    Match,
    Move,
    Nat,
    Output,
    match,
    set_field,
    with_fields,
)
from dunlin.pipeline.families import Family
from dunlin.pipeline.layout import FLAGS, NOTHING_REG, OWN_REPLIES, Table

# Where it came from is forgotten: it may leave through the same port, and is not in transit.
# A register that nothing sets is 0; set_field does not take in_port, move does.
NO_IN_PORT = Move(NOTHING_REG, "in_port")

# For a connection that nothing translates: its source port changes where a connection of the same
# client by a Service has the same endpoint, thus the same replies. Kernels do so of themselves.
_OWN_REPLY = Nat("src")


@dataclass(frozen=True)
class SwitchContext:
    """The switch that an intent is compiled for: its own SwitchIntent."""

    switch: SwitchIntent

    @property
    def node(self) -> str:
        """The node of this switch."""
        return self.switch.scope

    @cached_property
    def own_addresses(self) -> tuple[IPAddress, ...]:
        """Where the node itself is reached: its gateway addresses and its own."""
        addresses = {*self.switch.gateway_ips, *(a.ip for a in self.switch.addresses)}
        return tuple(sorted(addresses, key=lambda ip: (ip.version, int(ip))))

    def address(self, version: int) -> IPAddress | None:
        """The node's first own address of this IP version."""
        return next((a.ip for a in self.switch.addresses if a.ip.version == version), None)


class FlowMaker:
    """Flows of one intent: all carry its cookie."""

    def __init__(self, intent_id: IntentId) -> None:
        self.cookie = cookie_of(intent_id)
        self.flows: list[Flow] = []

    def add(
        self,
        table: Table,
        priority: int,
        when: Match,
        actions: Sequence[Action] = (),
        goto: Table | None = None,
    ) -> None:
        """One more flow; neither actions nor `goto`: drop."""
        self.flows.append(
            Flow(int(table), int(priority), when, tuple(actions), goto, cookie=self.cookie)
        )


def with_own_replies(family: Family, commit: Ct) -> tuple[Match, Ct]:
    """What ServiceLB has marked so, and how `commit` enters it."""
    when = with_fields(family.any, match(**{FLAGS: OWN_REPLIES.pair}))
    return when, structs.replace(commit, nat=_OWN_REPLY)


def deliver(source: MacAddress, destination: MacAddress, port: int) -> tuple[Action, ...]:
    """Rewrite both MAC addresses and output."""
    return (set_field("eth_src", source), set_field("eth_dst", destination), Output(port))


def to_gateway(context: SwitchContext, port: int | None = None) -> tuple[Action, ...]:
    """To the node's own network stack, out of `port` or its gateway port."""
    out = context.switch.gateway_port if port is None else port
    return deliver(GATEWAY_MAC, context.switch.router_mac, out)
