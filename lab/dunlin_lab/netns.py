"""
Network namespaces without a process: create, find, enter and delete.

A thread, not the process, changes its namespace: `run_in` starts a thread of its own for every
call, so a namespace never leaks into other work. What a thread opens there (sockets, netlink, child
processes) stays in that namespace. Names live in /run/netns, where iproute2 puts them, so that
`ip netns exec` works on them.

Source: setns(2), ip-netns(8).
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import fcntl
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NETNS_DIR = Path("/run/netns")

_CLONE_NEWNET = 0x40000000
_MNT_DETACH = 0x2
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_SHARED = 1 << 20
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,99}")

# Symbols of the running C library: Python has os.setns only from 3.12 on, and mount(2) not at all.
_libc = ctypes.CDLL(None, use_errno=True)


class NetnsError(Exception):
    """A namespace could not be made, entered or removed; the message names it."""


def path_of(name: str) -> Path:
    """
    The file of a named namespace, whether it exists or not.

    Raises:
        NetnsError: the name has characters that could leave /run/netns.
    """
    if not _NAME.fullmatch(name):
        raise NetnsError(f"network namespace {name!r}: not a valid name")
    return NETNS_DIR / name


def names() -> frozenset[str]:
    """All named namespaces of this machine, ours or not."""
    try:
        return frozenset(entry.name for entry in NETNS_DIR.iterdir())
    except FileNotFoundError:
        return frozenset()


def exists(name: str) -> bool:
    """True for a living namespace; a plain file left by a killed creator is none."""
    return _is_namespace(path_of(name))


def create(name: str) -> Path:
    """
    Make a named namespace with `lo` down, as the kernel gives it.

    A plain file of that name, left by a creator that was killed, is used.

    Raises:
        NetnsError: it exists already, or the kernel refused.
    """
    path = path_of(name)
    with _locked_dir():
        if _is_namespace(path):
            raise NetnsError(f"network namespace {name}: exists already")
        path.touch(mode=0o444)
        try:
            _in_thread(lambda: _unshare_and_bind(path)).result()
        except OSError as error:
            path.unlink(missing_ok=True)
            raise NetnsError(f"network namespace {name}: {error}") from error
    return path


def delete(name: str) -> bool:
    """
    Remove the name; the namespace ends with its last socket and process. Absent is no error.

    Returns:
        True when there was something to remove.
    """
    path = path_of(name)
    with _locked_dir():
        # A name may have been mounted over more than once: take every layer off.
        while _umount(path):
            pass
        try:
            path.unlink()
        except FileNotFoundError:
            return False
        except OSError as error:
            raise NetnsError(f"network namespace {name}: {error}") from error
    return True


def run_in(path: Path | str, fn: Callable[[], T]) -> T:
    """
    Call `fn` in a thread that has entered the namespace; its result or exception is ours.

    Raises:
        NetnsError: the namespace could not be entered; `fn` was not called.
    """
    return start_in(path, fn).result()


async def run_in_async(path: Path | str, fn: Callable[[], T]) -> T:
    """As `run_in`, without holding up the event loop. Cancelling does not stop `fn`."""
    return await asyncio.wrap_future(start_in(path, fn))


def start_in(path: Path | str, fn: Callable[[], T]) -> Future[T]:
    """As `run_in`, but returns at once."""

    def body() -> T:
        _enter(path)
        return fn()

    return _in_thread(body)


def exec_in(path: Path | str, argv: Sequence[str]) -> int:
    """
    Run a command in the namespace with our standard input, output and error.

    Returns:
        Its exit code; 128 + N when signal N ended it, 127 when there is no such command.
    """
    try:
        # A child is born in the namespace of the thread that forks it.
        process = run_in(path, lambda: subprocess.Popen(list(argv)))
    except FileNotFoundError:
        return 127
    except PermissionError:
        return 126
    while True:
        try:
            code = process.wait()
        except KeyboardInterrupt:
            # The terminal sent the same signal to the command, which decides what it means.
            continue
        return code if code >= 0 else 128 - code


def inode(path: Path | str) -> tuple[int, int]:
    """(device, inode): what tells whether two paths are the same namespace."""
    stat = Path(path).stat()
    return (stat.st_dev, stat.st_ino)


def _in_thread(fn: Callable[[], T]) -> Future[T]:
    """Run `fn` in a new thread that ends with it, whatever namespace it is in by then."""
    future: Future[T] = Future()

    def body() -> None:
        try:
            future.set_result(fn())
        except BaseException as error:  # noqa: BLE001 - handed to whoever waits, all of it
            future.set_exception(error)

    threading.Thread(target=body, name="netns", daemon=True).start()
    return future


def _enter(path: Path | str) -> None:
    """Move the calling thread."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NetnsError(f"network namespace {path}: {error}") from error
    try:
        if _libc.setns(fd, _CLONE_NEWNET) != 0:
            raise NetnsError(f"network namespace {path}: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(fd)


def _unshare_and_bind(path: Path) -> None:
    """Give the calling thread a new namespace and hold it by a bind mount at `path`."""
    if _libc.unshare(_CLONE_NEWNET) != 0:
        raise _os_error("unshare")
    _mount(Path("/proc/thread-self/ns/net"), path, _MS_BIND)


def _is_namespace(path: Path) -> bool:
    """Namespace files live on nsfs; an unmounted mount point lives where its folder does."""
    try:
        return path.stat().st_dev != path.parent.stat().st_dev
    except FileNotFoundError:
        return False


@contextmanager
def _locked_dir() -> Iterator[None]:
    """
    Hold /run/netns against other creators, having made it a shared mount as iproute2 does.

    Without that mount the first `ip netns add` of anybody would cover ours for ever.
    """
    NETNS_DIR.mkdir(parents=True, exist_ok=True)
    fd = os.open(NETNS_DIR, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        try:
            _mount(None, NETNS_DIR, _MS_SHARED | _MS_REC)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise NetnsError(f"{NETNS_DIR}: {error}") from error
            _mount(NETNS_DIR, NETNS_DIR, _MS_BIND | _MS_REC)
            _mount(None, NETNS_DIR, _MS_SHARED | _MS_REC)
        yield
    finally:
        os.close(fd)


def _mount(source: Path | None, target: Path, flags: int) -> None:
    """mount(2) without a file system type."""
    raw = bytes(source) if source is not None else b"none"
    if _libc.mount(raw, bytes(target), b"none", ctypes.c_ulong(flags), None) != 0:
        raise _os_error(f"mount {target}")


def _umount(path: Path) -> bool:
    """Take one mount off; False when there was none."""
    if _libc.umount2(bytes(path), _MNT_DETACH) == 0:
        return True
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOENT):
        return False
    raise NetnsError(f"umount {path}: {os.strerror(ctypes.get_errno())}")


def _os_error(what: str) -> OSError:
    """The C library's errno as an exception."""
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
