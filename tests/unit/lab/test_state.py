"""The journal and the state survive being cut off at any moment."""

from __future__ import annotations

import threading
from pathlib import Path

import msgspec
import pytest

from dunlin_lab.paths import LabPaths
from dunlin_lab.state import (
    Journal,
    LabBusyError,
    LabState,
    NoLabError,
    OutsideState,
    Resource,
    load_state,
    locked,
    save_state,
    write_atomically,
)


@pytest.fixture
def paths(tmp_path: Path) -> LabPaths:
    """A lab that exists on paper only."""
    return LabPaths("t", tmp_path)


def test_the_journal_gives_back_what_was_written_once_each(paths: LabPaths) -> None:
    """Repeating an entry is harmless, order is kept."""
    journal = Journal(paths.journal)
    assert journal.read() == ()
    for name in ("b", "a", "b"):
        journal.will_make("netns", name)
    assert journal.read() == (Resource("netns", "b"), Resource("netns", "a"))


def test_a_torn_last_line_is_what_was_not_made(paths: LabPaths) -> None:
    """A writer killed inside its write had not made the thing yet."""
    journal = Journal(paths.journal)
    journal.will_make("link", "x")
    with paths.journal.open("ab") as file:
        file.write(b'{"kind":"li')
    assert journal.read() == (Resource("link", "x"),)


def test_a_broken_line_in_the_middle_is_an_error(paths: LabPaths) -> None:
    """Silence there would leave things behind."""
    paths.run_dir.mkdir()
    paths.journal.write_bytes(b'garbage\n{"kind":"link","name":"x"}\n')
    with pytest.raises(msgspec.DecodeError):
        Journal(paths.journal).read()


def test_state_is_read_back_as_saved(paths: LabPaths) -> None:
    """What `up` knows, every later command knows."""
    state = LabState("t", "198.18.0.1", OutsideState("/run/netns/o", ("172.31.0.1",)))
    save_state(paths, state)
    assert load_state(paths) == state
    assert [p.name for p in paths.run_dir.iterdir()] == ["lab.json"]


def test_no_lab_is_a_clear_error(paths: LabPaths) -> None:
    """The message names the lab."""
    with pytest.raises(NoLabError, match="no lab 't'"):
        load_state(paths)


def test_a_second_holder_waits_then_says_who_is_busy(paths: LabPaths) -> None:
    """Two `up` of one lab at once do not mix."""
    held, let_go = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(paths):
            held.set()
            let_go.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert held.wait(10)
    with pytest.raises(LabBusyError, match="lab t"), locked(paths, timeout_s=0.1):
        pytest.fail("two holders")
    let_go.set()
    holder.join()
    with locked(paths, timeout_s=0.1):
        pass


def test_nobody_else_reads_what_is_written(tmp_path: Path) -> None:
    """Tokens, seeds and kubeconfigs are written so; also over a file that all could read."""
    file = tmp_path / "token"
    file.write_text("old")
    file.chmod(0o644)
    write_atomically(file, b"new")
    assert file.stat().st_mode & 0o777 == 0o600
