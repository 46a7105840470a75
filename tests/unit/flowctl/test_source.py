"""What a switch's own part is made from: equal for equal code and intents, and only for those."""

from pathlib import Path

import pytest
from msgspec.structs import replace

from dunlin.events.intents import AnyIntent
from dunlin_flowctl.adapters.pipeline import PipelineCompiler, version_of
from dunlin_flowctl.core.desired import Desired
from dunlin_flowctl.core.source import Source, Sources
from dunlin_flowctl.core.switch import Moment
from tests.unit.flowctl.programs import (
    FakeCompiler,
    endpoint_intent,
    route_intent,
    service_intent,
    switch_intent,
    version,
)

POD = endpoint_intent("n1", "a", 4)
SWITCH = switch_intent("n1")


def test_a_number_says_what_it_was_made_of() -> None:
    """All parts come back, the largest too; what does not fit is not said."""
    for source in (Source(1, 0, 0), Source((1 << 80) - 1, (1 << 24) - 1, (1 << 24) - 1)):
        assert Source.of(source.word()) == source
        assert 0 < source.word() < 1 << 128
    assert Source(1, 1 << 24, 0).word() == Source(1, 0, 1 << 24).word() == 0


@pytest.mark.parametrize(
    ("version", "intents"),
    [
        (b"2", (SWITCH, POD)),
        (b"1", (POD, SWITCH)),
        (b"1", (SWITCH,)),
        (b"1", (SWITCH, POD, None)),
        (b"1", (SWITCH, replace(POD, ofport=5))),
    ],
)
def test_code_and_intents_count(version: bytes, intents: tuple[AnyIntent | None, ...]) -> None:
    """Another version, order, number or content: another digest."""
    digest = FakeCompiler().digest
    known = Sources(b"1", digest)
    same = known.digest((SWITCH, POD))
    assert Sources(b"1", digest).digest((SWITCH, replace(POD, trigger_ms=7, change=3))) == same
    assert Sources(version, digest).digest(intents) != same
    # What has been read before of an intent of this id is not taken for it.
    if version == b"1":
        assert known.digest(intents) != same


def test_an_intent_is_read_once() -> None:
    """However often it is asked for; until it is another one, or gone."""
    read: list[AnyIntent] = []

    def digest(intent: AnyIntent) -> bytes:
        read.append(intent)
        return b"x"

    sources = Sources(b"1", digest)
    for _ in range(3):
        sources.digest((SWITCH, POD))
    assert read == [SWITCH, POD]
    sources.forget(POD.id)
    sources.digest((SWITCH, POD))
    assert read == [SWITCH, POD, POD]


@pytest.mark.parametrize("what", ["changed", "added", "renamed"])
def test_other_sources_are_another_version(tmp_path: Path, what: str) -> None:
    """Any file of Python below the package counts, with its name; the same again is the same."""
    (tmp_path / "core").mkdir()
    file = tmp_path / "core" / "flows.py"
    file.write_text("PORT = 1")
    before = version_of([tmp_path])
    assert version_of([tmp_path]) == before
    match what:
        case "changed":
            file.write_text("PORT = 2")
        case "added":
            (tmp_path / "more.py").write_text("")
        case _:
            file.rename(tmp_path / "core" / "flow.py")
    assert version_of([tmp_path]) != before


def test_the_pipeline_has_a_version() -> None:
    """Of sources that are there: an empty list of files would be the same everywhere."""
    assert PipelineCompiler().version == PipelineCompiler().version != version_of([])


def test_what_is_not_as_asked_for_has_no_source() -> None:
    """The next owner has to see for itself what it reports."""
    desired = Desired(FakeCompiler())
    desired.upsert(version(SWITCH, 1))
    desired.upsert(version(POD, 2))
    switch = desired.begin("n1")
    assert switch is not None
    assert not desired.source(switch), "not made yet"
    desired.manage("n1")
    switch = desired.switches["n1"]
    sources = [desired.source(switch)]
    # Two Pods on one port: the second does not get it.
    more: tuple[AnyIntent, ...] = (endpoint_intent("n1", "b", 4), route_intent("n2", 1))
    for revision, intent in enumerate(more, 3):
        desired.upsert(version(intent, revision))
        sources.append(desired.source(switch))
    desired.delete(endpoint_intent("n1", "b", 4).id, Moment(5))
    sources.append(desired.source(switch))
    desired.upsert(version(service_intent("web", (1,)), 6))
    sources.append(desired.source(switch))
    first, conflict, still, route, service = sources
    assert (conflict, still) == (0, 0)
    assert len({first, route, 0}) == 3
    assert service == route, "no part of its own"
    assert Source.of(route)[1:] == (switch.own.totals.flows, switch.own.totals.groups)
