"""Events in, touched nodes out: ipam's state is planned a node at a time."""

from collections.abc import Iterable
from typing import assert_never

from dunlin_ipam.core.events import Deleted, Event, Upserted
from dunlin_ipam.state import State


def apply(state: State, events: Iterable[Event]) -> set[str]:
    """
    Take in events (any repetition).

    Returns the nodes whose duties or endpoint intents may differ now.

    `state` is changed in place and belongs to the caller alone.
    """
    touched: set[str] = set()
    for event in events:
        match event:
            case Upserted(fact, seq):
                touched |= state.put(fact, seq)
            case Deleted(kind, namespace, name, seq):
                touched |= state.drop(kind, namespace, name, seq)
            case _:
                assert_never(event)
    return touched
