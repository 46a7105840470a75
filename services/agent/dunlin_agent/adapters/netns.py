"""
Doing something inside another network namespace, in this thread, without a process.

A socket belongs for ever to the namespace in which it was opened, and /proc/sys/net shows the
namespace of the thread that opens a file there: entering is needed for those two moments only.
Source: network_namespaces(7), setns(2).
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

CLONE_NEWNET: Final = 0x40000000
_OWN: Final = "/proc/thread-self/ns/net"

_libc = ctypes.CDLL(None, use_errno=True)


class NamespaceGoneError(Exception):
    """The path is not (or no longer) a network namespace."""


def _setns(fd: int) -> None:
    """os.setns() of Python 3.12, for 3.11 too."""
    if _libc.setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def entered(netns: Path | None) -> Iterator[None]:
    """
    Run the body with this thread in `netns`; None is the process's own and costs nothing.

    The body must not await: another coroutine would run in the namespace too.

    Raises:
        NamespaceGoneError: `netns` does not exist or is no network namespace.
    """
    if netns is None:
        yield
        return
    own = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        _enter(netns)
        try:
            yield
        finally:
            _setns(own)
    finally:
        os.close(own)


def _enter(netns: Path) -> None:
    try:
        fd = os.open(netns, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceGoneError(f"network namespace {netns}: {error.strerror}") from error
    try:
        _setns(fd)
    except OSError as error:
        raise NamespaceGoneError(f"network namespace {netns}: {error.strerror}") from error
    finally:
        os.close(fd)


def write_sysctl(name: str, value: int) -> None:
    """
    Set `net/...` of the namespace that this thread is in.

    `name` is a path below /proc/sys, because interface names may hold dots.
    """
    Path("/proc/sys", name).write_text(f"{value}\n", encoding="ascii")


def read_sysctl(name: str) -> int:
    """Read an integer `net/...` of the namespace that this thread is in."""
    return int(Path("/proc/sys", name).read_text(encoding="ascii"))
