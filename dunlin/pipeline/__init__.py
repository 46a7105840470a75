"""
Compiling an intent for a switch: pure, total, and the only place where flows are made.

flowctl, `plan`, `trace`, the simulator and the tests all call `compile_intent`.
"""

from typing import assert_never

from dunlin.events.intents import (
    AnyIntent,
    EndpointIntent,
    HostPortIntent,
    LocalServiceIntent,
    PolicyClassIntent,
    PolicyCommitIntent,
    PolicyGenerationIntent,
    PolicyIntent,
    PolicyNetworkIntent,
    PolicyPeerIntent,
    PolicyPortIntent,
    PolicySubjectIntent,
    RouteIntent,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin.openflow.flow import Program
from dunlin.pipeline.base import SwitchContext
from dunlin.pipeline.endpoint import compile_endpoint
from dunlin.pipeline.host_port import compile_host_port
from dunlin.pipeline.policy import (
    compile_class,
    compile_network,
    compile_peer,
    compile_policy,
    compile_port,
)
from dunlin.pipeline.policy_phase import both, compile_commit, is_new_only
from dunlin.pipeline.policy_state import compile_generation, compile_subject
from dunlin.pipeline.route import compile_route
from dunlin.pipeline.service import compile_local_service, compile_service
from dunlin.pipeline.switch import compile_switch

__all__ = ["SwitchContext", "compile_both", "compile_intent", "is_shared", "switch_context"]


def switch_context(intent: SwitchIntent) -> SwitchContext:
    """The context of the switch that `intent` is about."""
    return SwitchContext(intent)


def is_shared(intent: AnyIntent) -> bool:
    """Its program is the same on every switch and needs no context."""
    return isinstance(intent, _SHARED)


_SHARED = (
    RouteIntent,
    ServicePortIntent,
    PolicyIntent,
    PolicyClassIntent,
    PolicyPortIntent,
    PolicyPeerIntent,
    PolicyNetworkIntent,
    PolicyGenerationIntent,
    PolicyCommitIntent,
)


def compile_intent(intent: AnyIntent, context: SwitchContext | None) -> Program:
    """
    Flows and groups of one intent on one switch.

    `context` may be None only for intents that `is_shared`, and for the SwitchIntent itself.
    """
    match intent:
        case SwitchIntent():
            return compile_switch(intent)
        case EndpointIntent():
            return compile_endpoint(intent)
        case RouteIntent():
            return compile_route(intent)
        case ServicePortIntent():
            return compile_service(intent)
        case LocalServiceIntent():
            return compile_local_service(intent)
        case HostPortIntent():
            assert context is not None, intent.id
            return compile_host_port(intent, context)
        case PolicyIntent():
            return compile_policy(intent)
        case PolicyClassIntent():
            return compile_class(intent)
        case PolicyPortIntent():
            return compile_port(intent)
        case PolicyPeerIntent():
            return compile_peer(intent)
        case PolicyNetworkIntent():
            return compile_network(intent)
        case PolicySubjectIntent():
            return compile_subject(intent)
        case PolicyGenerationIntent():
            return compile_generation(intent)
        case PolicyCommitIntent():
            return compile_commit(intent)
        case _:
            assert_never(intent)


def compile_both(
    old: AnyIntent | None, new: AnyIntent | None, context: SwitchContext | None
) -> Program:
    """What a switch holds of an intent of policy while a change of it is prepared (ADR 0030)."""
    after = compile_intent(new, context) if new is not None else Program()
    if is_new_only(old, new):
        return after
    return both(compile_intent(old, context) if old is not None else Program(), after)
