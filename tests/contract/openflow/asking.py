"""What a session with any switch is asked, the fake one and real Open vSwitch."""

from typing import Protocol

from dunlin.openflow import codec
from dunlin.openflow.flow import Flow, Group
from dunlin.openflow.messages import ErrorMessage, FlowDump, GroupDump, Message
from tests.fixtures.openflow_samples import GROUPS


class Session(Protocol):
    """A session with any switch."""

    def ask(self, *requests: bytes) -> list[Message]:
        """Send; everything that comes until a barrier's reply."""
        ...


def flows_of(session: Session) -> set[Flow]:
    """All flows of the bridge."""
    parts = session.ask(codec.encode_flow_dump_request(77))
    assert all(isinstance(part, FlowDump) for part in parts), parts
    assert [part.more for part in parts if isinstance(part, FlowDump)][-1] is False
    return {e.flow for part in parts if isinstance(part, FlowDump) for e in part.entries}


def groups_of(session: Session) -> dict[int, Group]:
    """All groups of the bridge."""
    parts = session.ask(codec.encode_group_dump_request(78))
    assert all(isinstance(part, GroupDump) for part in parts), parts
    return {g.group_id: g for part in parts if isinstance(part, GroupDump) for g in part.groups}


def errors(messages: list[Message]) -> list[ErrorMessage]:
    """The errors among them."""
    return [message for message in messages if isinstance(message, ErrorMessage)]


def add_groups(session: Session) -> None:
    """All sample groups."""
    answers = session.ask(*(codec.encode_group(group, "add") for group in GROUPS.values()))
    assert not errors(answers), errors(answers)
