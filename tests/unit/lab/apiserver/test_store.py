"""Revisions, history and pages; and the same read back from disk."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin_lab.apiserver.errors import ApiError
from dunlin_lab.apiserver.journal import FileJournal, JournalCorruptError
from dunlin_lab.apiserver.resources import CONFIGMAPS
from dunlin_lab.apiserver.store import Store

if TYPE_CHECKING:
    from pathlib import Path

NAMES = "abcd"


def put(store: Store, name: str, value: str = "", namespace: str = "n") -> None:
    """Write one ConfigMap."""
    metadata = {"name": name, "namespace": namespace}
    store.put(CONFIGMAPS, {"metadata": metadata, "data": {"v": value}})


def content(store: Store, revision: int | None = None) -> dict[str, str]:
    """Return name -> value at a revision."""
    at = store.revision if revision is None else revision
    return {i.name: i.obj["data"]["v"] for i in store.of(CONFIGMAPS).scan(at, "", "")}


def write(store: Store, operations: list[tuple[str, bool]]) -> list[dict[str, str]]:
    """Write or delete names; returns the content at each revision, the first included."""
    states = [content(store)]
    for number, (name, remove) in enumerate(operations):
        if remove and store.of(CONFIGMAPS).get("n", name) is not None:
            store.remove(CONFIGMAPS, "n", name)
        else:
            put(store, name, str(number))
        states.append(content(store))
    return states


OPERATIONS = st.lists(st.tuples(st.sampled_from(NAMES), st.booleans()), max_size=25)


@given(OPERATIONS)
def test_every_kept_revision_can_be_read(operations: list[tuple[str, bool]]) -> None:
    """A scan at an old revision shows exactly what was there, and count_after agrees."""
    store = Store()
    states = write(store, operations)
    collection = store.of(CONFIGMAPS)
    for back, state in enumerate(states):
        assert content(store, 1 + back) == state
        for after in ("", "n/a", "n/b", "n/z"):
            keys = [item.key for item in collection.scan(1 + back, "n/", after)]
            assert keys == sorted(f"n/{name}" for name in state if f"n/{name}" > after)
            assert collection.count_after(1 + back, "n/", after) == len(keys)


@given(OPERATIONS)
def test_changes_since_a_revision_lead_to_the_present(operations: list[tuple[str, bool]]) -> None:
    """Replaying the changes after any revision gives the present content."""
    store = Store()
    states = write(store, operations)
    for back, state in enumerate(states):
        replayed = dict(state)
        for change in store.of(CONFIGMAPS).since(1 + back):
            if change.new is None:
                del replayed[change.latest.name]
            else:
                replayed[change.latest.name] = change.new.obj["data"]["v"]
        assert replayed == states[-1]


def test_compacted_revision_is_refused() -> None:
    """What is older than the history is a 410; what is just within it is not."""
    store = Store(history_max=3)
    for number in range(6):
        put(store, "a", str(number))
    assert len(store.of(CONFIGMAPS).since(store.revision - 3)) == 3
    with pytest.raises(ApiError) as caught:
        store.of(CONFIGMAPS).since(store.revision - 4)
    assert caught.value.code == 410


def test_namespace_prefix_is_no_name_prefix() -> None:
    """Namespace `n` does not show what is in namespace `n2`."""
    store = Store()
    put(store, "a")
    put(store, "b", namespace="n2")
    found = [item.key for item in store.of(CONFIGMAPS).scan(store.revision, "n/", "")]
    assert found == ["n/a"]
    assert [item.key for item in store.of(CONFIGMAPS).within("n2")] == ["n2/b"]


@given(OPERATIONS, st.integers(0, 400))
def test_journal_brings_back_the_state(
    tmp_path_factory: pytest.TempPathFactory, operations: list[tuple[str, bool]], rotate: int
) -> None:
    """Whatever was written is there after a restart, with its revision, also across rotations."""
    directory = tmp_path_factory.mktemp("journal")
    store = Store()
    first = FileJournal(directory, rotate_bytes=rotate)
    first.load(store)
    write(store, operations)
    first.close()
    again = Store()
    second = FileJournal(directory, rotate_bytes=rotate)
    second.load(again)
    assert content(again) == content(store)
    assert again.revision == store.revision
    put(again, "z")
    assert again.revision == store.revision + 1
    second.close()


def test_history_survives_one_rotation(tmp_path: Path) -> None:
    """After a restart a watch can resume from before the newest snapshot."""
    store = Store()
    journal = FileJournal(tmp_path, rotate_bytes=300)
    journal.load(store)
    while not (tmp_path / "snapshot-1.jsonl").exists():
        put(store, "a", str(store.revision))
    journal.close()
    again = Store()
    second = FileJournal(tmp_path)
    second.load(again)
    assert len(again.of(CONFIGMAPS).since(2)) == again.revision - 2
    second.close()


def test_torn_last_line_is_cut_off(tmp_path: Path) -> None:
    """A write that a crash interrupted is dropped, and later ones are kept."""
    store = Store()
    journal = FileJournal(tmp_path)
    journal.load(store)
    put(store, "a", "1")
    put(store, "b", "2")
    journal.close()
    log = tmp_path / "log-0.jsonl"
    os.truncate(log, log.stat().st_size - 5)
    again = Store()
    second = FileJournal(tmp_path)
    second.load(again)
    assert content(again) == {"a": "1"}
    put(again, "c", "3")
    second.close()
    third = Store()
    last = FileJournal(tmp_path)
    last.load(third)
    assert content(third) == {"a": "1", "c": "3"}
    last.close()


def test_damaged_line_is_named(tmp_path: Path) -> None:
    """A line that does not parse stops the start and says which it is."""
    (tmp_path / "log-0.jsonl").write_bytes(b'{"rv":2}x\n')
    with pytest.raises(JournalCorruptError, match=r"log-0\.jsonl line 1"):
        FileJournal(tmp_path).load(Store())
