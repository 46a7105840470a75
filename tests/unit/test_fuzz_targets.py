"""The fuzzers' targets, on their seeds and on what once broke them; `make fuzz` goes on."""

from pathlib import Path

import pytest

from dunlin_agent.cni import wire
from tests.fuzz import targets

FOUND = Path(targets.__file__).parent / "found"


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_and_what_was_found(name: str) -> None:
    """Each seed, each of its halves, and each input that once broke the target raise nothing."""
    known = list(targets.seeds(name))
    known += [path.read_bytes() for path in sorted((FOUND / name).glob("*"))]
    assert known
    for data in known:
        targets.TARGETS[name](data)
        targets.TARGETS[name](data[: len(data) // 2])


def test_what_breaks_a_parser_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is not the parser's own comes out of a target."""

    def broken(_data: bytes) -> None:
        raise IndexError

    monkeypatch.setattr(wire, "decode_request", broken)
    with pytest.raises(IndexError):
        targets.cni_request(b"{}")
