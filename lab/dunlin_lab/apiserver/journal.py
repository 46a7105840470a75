"""
State on disk: a snapshot and a log of what came after, in generations.

Generation g is `snapshot-g.jsonl` (the objects when g began; none for 0) and `log-g.jsonl` (the
changes since). The one before is kept too, so that after a restart watches resume from at least
one whole log back. Each change is one write(2) of one line: it survives kill -9 of the process,
not the loss of the machine, unless `fsync` is on. A torn last line is cut off when read back.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import msgspec

from dunlin_lab.apiserver.resources import BY_QUALIFIED, RESOURCES
from dunlin_lab.apiserver.values import decode, encode

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dunlin_lab.apiserver.store import Change, Store

ROTATE_BYTES = 64 * 1024 * 1024
"""A log of this size begins a new generation."""


class JournalCorruptError(Exception):
    """A file of the data directory cannot be read back; names the file and the line."""


class FileJournal:
    """The journal of one store in one directory, which must exist."""

    def __init__(
        self, directory: Path, *, rotate_bytes: int = ROTATE_BYTES, fsync: bool = False
    ) -> None:
        """Look for the newest generation; nothing is opened before `load`."""
        self._directory = directory
        self._rotate_bytes = rotate_bytes
        self._fsync = fsync
        self._generation = max(_generations(directory), default=0)
        self._store: Store | None = None
        self._log = -1
        self._size = 0

    def load(self, store: Store) -> None:
        """
        Bring a new store to the last state written, and record its changes from now on.

        Raises:
            JournalCorruptError: a line other than a torn last one does not parse.
        """
        newest = self._generation
        oldest = newest - 1 if newest - 1 in _generations(self._directory) else newest
        snapshot = self._snapshot_path(oldest)
        if snapshot.exists():
            self._load_snapshot(store, snapshot)
        for generation in range(oldest, newest + 1):
            self._load_log(store, self._log_path(generation))
        self._open()
        self._store = store
        store.journal = self

    def close(self) -> None:
        """Close the log."""
        if self._log >= 0:
            os.close(self._log)
            self._log = -1

    def record(self, change: Change) -> None:
        """Append one change."""
        if self._size > self._rotate_bytes:
            self._rotate()
        body = b"null" if change.new is None else change.new.body
        line = b'{"rv":%d,"of":%s,"key":%s,"obj":%s}\n' % (
            change.revision, encode(change.resource.qualified), encode(change.key), body,
        )  # fmt: skip
        self._size += _write_all(self._log, line)
        if self._fsync:
            os.fdatasync(self._log)

    def _rotate(self) -> None:
        assert self._store is not None, "record comes after load"
        self._generation += 1
        target = self._snapshot_path(self._generation)
        partial = target.with_suffix(".tmp")
        with partial.open("wb") as file:
            file.write(encode({"revision": self._store.revision}) + b"\n")
            for resource in RESOURCES:
                name = encode(resource.qualified)
                for item in self._store.of(resource).items.values():
                    file.write(b'{"of":%s,"obj":%s}\n' % (name, item.body))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        self.close()
        self._open()
        for generation in _generations(self._directory):
            if generation < self._generation - 1:
                self._snapshot_path(generation).unlink(missing_ok=True)
                self._log_path(generation).unlink(missing_ok=True)

    def _open(self) -> None:
        path = self._log_path(self._generation)
        self._log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._size = os.fstat(self._log).st_size

    def _load_snapshot(self, store: Store, path: Path) -> None:
        lines = _lines(path, torn_end=False)
        store.compact_at(next(lines)["revision"])
        for line in lines:
            resource = BY_QUALIFIED.get(line["of"])
            if resource is not None:  # a kind that an older version of this program kept
                store.preload(resource, line["obj"])

    def _load_log(self, store: Store, path: Path) -> None:
        if not path.exists():
            return
        for line in _lines(path, torn_end=True):
            resource = BY_QUALIFIED.get(line["of"])
            if resource is not None:
                store.restore(resource, line["key"], line["rv"], line["obj"])

    def _snapshot_path(self, generation: int) -> Path:
        return self._directory / f"snapshot-{generation}.jsonl"

    def _log_path(self, generation: int) -> Path:
        return self._directory / f"log-{generation}.jsonl"


def _generations(directory: Path) -> set[int]:
    names = (re.fullmatch(r"(?:log|snapshot)-(\d+)\.jsonl", path.name) for path in
             directory.iterdir())  # fmt: skip
    return {int(found[1]) for found in names if found}


def _write_all(descriptor: int, line: bytes) -> int:
    written = 0
    while written < len(line):
        written += os.write(descriptor, line[written:])
    return written


def _lines(path: Path, *, torn_end: bool) -> Iterator[Any]:
    """Yield decoded lines; cut a torn last one off the file where that may happen."""
    good = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if torn_end and not line.endswith(b"\n"):
                break
            try:
                yield decode(line)
            except msgspec.DecodeError as error:
                message = f"{path} line {number}: {error}"
                raise JournalCorruptError(message) from error
            good += len(line)
    if torn_end and good < path.stat().st_size:
        os.truncate(path, good)
