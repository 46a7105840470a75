"""
Compiling an intent for a switch: pure, total, and the only place where flows are made.

flowctl, `plan`, `trace`, the simulator and the tests all call `compile_intent`.
"""

from typing import assert_never

from dunlin.events.intents import (
    AnyIntent,
    EndpointIntent,
    RouteIntent,
    ServicePortIntent,
    SwitchIntent,
)
from dunlin.openflow.flow import Program
from dunlin.pipeline.base import SwitchContext
from dunlin.pipeline.endpoint import compile_endpoint
from dunlin.pipeline.route import compile_route
from dunlin.pipeline.service import compile_service
from dunlin.pipeline.switch import compile_switch

__all__ = ["SwitchContext", "compile_intent", "is_shared", "switch_context"]


def switch_context(intent: SwitchIntent) -> SwitchContext:
    """The context of the switch that `intent` is about."""
    return SwitchContext(intent)


def is_shared(intent: AnyIntent) -> bool:
    """Its program is the same on every switch and needs no context."""
    return isinstance(intent, ServicePortIntent)


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
            assert context is not None, intent.id
            return compile_route(intent, context)
        case ServicePortIntent():
            return compile_service(intent)
        case _:
            assert_never(intent)
