"""Lines of a table: (source, destination, port) -> what becomes of a connection."""

from typing import NamedTuple

from dunlin.events.facts import AnyFact
from tests.packets.world import Verdict


class Case(NamedTuple):
    """One line of the table."""

    name: str
    facts: tuple[AnyFact, ...]
    source: str
    target: str
    port: int
    verdict: Verdict


def case(
    name: str, facts: tuple[AnyFact, ...], verdicts: dict[tuple[str, str, int], Verdict]
) -> list[Case]:
    """Lines that share their facts."""
    return [Case(name, facts, *who, verdict) for who, verdict in verdicts.items()]
