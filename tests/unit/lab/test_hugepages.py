"""Hugepages go back exactly as found, whoever dies when."""

from __future__ import annotations

from pathlib import Path

import pytest

from dunlin_lab.hugepages import HugepageError, Hugepages


@pytest.fixture
def pool(tmp_path: Path) -> Hugepages:
    """A pool of files: 10 pages found."""
    (tmp_path / "nr").write_text("10\n")
    (tmp_path / "meminfo").write_text("HugePages_Free:    3\nHugepagesize:    2048 kB\n")
    return Hugepages(tmp_path / "nr", tmp_path / "meminfo", tmp_path / "ledger")


def now(pool: Hugepages) -> int:
    """Pages in the pool."""
    return int(pool.pool.read_text())


def test_two_labs_borrow_and_give_back_in_either_order(pool: Hugepages) -> None:
    """The last one out leaves what the first one found, and no file."""
    pool.borrow("/a", 64)
    pool.borrow("/b", 32)
    assert now(pool) == 106
    assert pool.give_back("/a")
    assert now(pool) == 42
    assert pool.give_back("/b")
    assert now(pool) == 10
    assert not pool.ledger.exists()
    assert not pool.give_back("/b")


def test_borrowing_again_replaces_the_share(pool: Hugepages) -> None:
    """A lab that is brought up twice does not borrow twice."""
    pool.borrow("/a", 64)
    pool.borrow("/a", 16)
    assert now(pool) == 26


def test_killed_between_ledger_and_kernel_nothing_is_lost(pool: Hugepages) -> None:
    """The ledger says 74, the kernel still has 10: giving back leaves 10."""
    pool.borrow("/a", 64)
    pool.pool.write_text("10\n")
    assert pool.give_back("/a")
    assert now(pool) == 10


def test_what_somebody_else_changed_is_theirs(pool: Hugepages) -> None:
    """100 pages added by another program meanwhile stay."""
    pool.borrow("/a", 64)
    pool.pool.write_text("174\n")
    pool.give_back("/a")
    assert now(pool) == 110


def test_too_few_is_an_error_and_leaves_the_pool_as_found(pool: Hugepages) -> None:
    """A kernel that gives fewer (memory is fragmented) is asked to take back what it gave."""

    class Stingy(type(pool.pool)):  # type: ignore[misc]
        """A pool file that never holds more than 20."""

        def write_text(self, data: str, *args: object, **kwargs: object) -> int:
            """Write at most 20."""
            written: int = super().write_text(f"{min(int(data), 20)}\n")
            return written

    stingy = Hugepages(Stingy(pool.pool), pool.meminfo, pool.ledger)
    with pytest.raises(HugepageError, match="64 more hugepages of 2048 KiB"):
        stingy.borrow("/a", 64)
    assert now(pool) == 10
    assert not pool.ledger.exists()


def test_no_hugepages_in_the_kernel_is_an_error(pool: Hugepages) -> None:
    """A kernel built without them has no such file."""
    pool.pool.unlink()
    with pytest.raises(HugepageError, match="has no hugepages"):
        pool.borrow("/a", 1)
