"""
Hugepages borrowed from the machine by labs, and given back exactly as found.

One ledger for the whole machine says how many pages were there before the first lab and what each
lab has borrowed. It is written before the kernel is asked, and the number asked for is absolute, so
a borrower killed between the two leaves nothing that `give_back` would get wrong.

Source: Linux Documentation/admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from dunlin_lab.state import write_atomically

_MNT_DETACH = 0x2
_libc = ctypes.CDLL(None, use_errno=True)


class HugepageError(Exception):
    """Hugepages cannot be had; the message says how many there are."""


class Ledger(msgspec.Struct):
    """What the machine had, and who has borrowed how many pages since."""

    found: int
    asked: int
    """What we last asked the kernel for."""
    before: int
    """What there was just before we asked."""
    shares: dict[str, int]
    """Run directory of the lab -> pages."""


@dataclass(frozen=True, slots=True)
class Hugepages:
    """The pool of default-size pages. The paths differ only in tests."""

    pool: Path = Path("/proc/sys/vm/nr_hugepages")
    meminfo: Path = Path("/proc/meminfo")
    ledger: Path = Path("/run/dunlin-lab.hugepages")

    @property
    def page_kib(self) -> int:
        """Size of one page; 0 where the kernel has no hugepages."""
        return self._meminfo("Hugepagesize")

    def shares(self) -> dict[str, int]:
        """Who has borrowed how many pages: run directory of the lab -> pages."""
        ledger = self._read()
        return {} if ledger is None else ledger.shares

    def borrow(self, lab: str, pages: int) -> None:
        """
        Raise the pool so that the lab has `pages` of its own. Again: replaces its earlier share.

        Args:
            lab: what tells labs apart on this machine, its run directory.
        Raises:
            HugepageError: the kernel gave fewer; the pool is then as it was before.
        """
        with self._locked():
            ledger = self._read() or Ledger(self._now(), self._now(), self._now(), {})
            if self._set(ledger, {**ledger.shares, lab: pages}) >= 0:
                return
            have, free = self._now(), self._meminfo("HugePages_Free")
            rest = {name: share for name, share in ledger.shares.items() if name != lab}
            self._set(ledger, rest)
            raise HugepageError(
                f"{pages} more hugepages of {self.page_kib} KiB cannot be had: the kernel gave "
                f"{have}, of which {free} free"
            )

    def give_back(self, lab: str) -> bool:
        """Lower the pool by the lab's share; False when it had none."""
        with self._locked():
            ledger = self._read()
            if ledger is None or lab not in ledger.shares:
                return False
            self._set(ledger, {n: share for n, share in ledger.shares.items() if n != lab})
        return True

    def _set(self, ledger: Ledger, shares: dict[str, int]) -> int:
        """Write the ledger, then the pool. Returns pages had less pages wished."""
        now = self._now()
        # Somebody else may have changed the pool since: what they changed is theirs to keep.
        foreign = 0 if now in (ledger.asked, ledger.before) else now - ledger.asked
        ledger.found = max(0, ledger.found + foreign)
        ledger.before, ledger.asked = now, ledger.found + sum(shares.values())
        ledger.shares = shares
        write_atomically(self.ledger, msgspec.json.encode(ledger))
        self.pool.write_text(f"{ledger.asked}\n")
        got, wished = self._now(), ledger.asked
        if not shares:
            self.ledger.unlink()
        elif got != wished:
            # Not somebody else's change: the kernel could not do it.
            ledger.asked = got
            write_atomically(self.ledger, msgspec.json.encode(ledger))
        return got - wished

    def _now(self) -> int:
        return int(self.pool.read_text())

    def _read(self) -> Ledger | None:
        try:
            return msgspec.json.decode(self.ledger.read_bytes(), type=Ledger)
        except FileNotFoundError:
            return None

    def _meminfo(self, field: str) -> int:
        for line in self.meminfo.read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1])
        return 0

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock is on the pool itself, which is always there and never replaced."""
        try:
            fd = os.open(self.pool, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise HugepageError(f"this kernel has no hugepages ({self.pool} is absent)") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def mount(path: Path) -> None:
    """
    Mount a hugetlbfs of our own at `path`, so that the machine's is neither needed nor touched.

    Raises:
        HugepageError: the kernel refused.
    """
    path.mkdir(parents=True, exist_ok=True)
    if os.path.ismount(path):
        return
    if _libc.mount(b"hugetlbfs", bytes(path), b"hugetlbfs", ctypes.c_ulong(0), b"mode=0700") != 0:
        raise HugepageError(f"mount hugetlbfs at {path}: {os.strerror(ctypes.get_errno())}")


def unmount(path: Path) -> bool:
    """
    Undo `mount`; what is in it goes with it. False: was not mounted.

    Raises:
        HugepageError: the kernel refused.
    """
    if _libc.umount2(bytes(path), _MNT_DETACH) == 0:
        return True
    if (number := ctypes.get_errno()) in (errno.EINVAL, errno.ENOENT):
        return False
    raise HugepageError(f"umount {path}: {os.strerror(number)}")
