"""Network namespaces made, entered and removed without a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dunlin_lab import netns

OWN = Path("/proc/thread-self/ns/net")
"""The namespace of the thread that reads it."""

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


@pytest.fixture
def name() -> Iterator[str]:
    """A namespace name of this test only, removed after."""
    value = f"dl-netnstest-{os.getpid()}"
    yield value
    netns.delete(value)


def test_create_gives_a_namespace_that_ip_netns_knows_and_delete_removes_it(name: str) -> None:
    """The name is one iproute2 can use, and nothing is left of it after delete."""
    path = netns.create(name)
    assert netns.exists(name)
    assert netns.inode(path) != netns.inode("/proc/self/ns/net")
    done = subprocess.run(["ip", "netns", "exec", name, "true"], check=False)
    assert done.returncode == 0
    assert netns.delete(name)
    assert not netns.delete(name)
    assert not path.exists()


def test_create_refuses_a_living_namespace_and_takes_over_a_dead_file(name: str) -> None:
    """Two owners of one name are an error; what a killed creator left is used."""
    netns.path_of(name).touch()
    assert not netns.exists(name)
    netns.create(name)
    with pytest.raises(netns.NetnsError, match=name):
        netns.create(name)


def test_run_in_enters_only_in_its_own_thread(name: str) -> None:
    """The caller's namespace is untouched, also when the function raises."""
    path = netns.create(name)
    before = OWN.readlink()
    inside = netns.run_in(path, OWN.readlink)
    assert str(inside) == f"net:[{path.stat().st_ino}]"

    def fail() -> None:
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        netns.run_in(path, fail)
    assert OWN.readlink() == before


def test_a_socket_opened_inside_stays_inside(name: str) -> None:
    """A socket belongs to the namespace where it was opened, so one process can serve many."""
    path = netns.create(name)
    with netns.run_in(path, lambda: socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=1)


def test_run_in_names_the_namespace_that_is_not_there() -> None:
    """An absent namespace is a clear error and the function is not called."""
    with pytest.raises(netns.NetnsError, match="dl-absent"):
        netns.run_in(netns.path_of("dl-absent"), lambda: pytest.fail("was called"))


def test_a_name_cannot_leave_the_folder() -> None:
    """Names come from users: a path is not a name."""
    with pytest.raises(netns.NetnsError, match="not a valid name"):
        netns.path_of("../etc")


@pytest.mark.parametrize(
    ("code", "expected"),
    [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", 137)],
)
def test_exec_in_returns_the_exit_code(name: str, code: str, expected: int) -> None:
    """`dunlin lab exec` ends as its command did, signals as a shell tells them."""
    path = netns.create(name)
    assert netns.exec_in(path, [sys.executable, "-c", code]) == expected


def test_exec_in_runs_in_the_namespace(name: str, tmp_path: Path) -> None:
    """The command's namespace is the Pod's, not ours."""
    path = netns.create(name)
    out = tmp_path / "ns"
    code = f"import os; open({str(out)!r}, 'w').write(os.readlink('/proc/self/ns/net'))"
    assert netns.exec_in(path, [sys.executable, "-c", code]) == 0
    assert out.read_text() == f"net:[{path.stat().st_ino}]"


def test_exec_in_tells_a_missing_command(name: str) -> None:
    """127, as a shell says."""
    assert netns.exec_in(netns.create(name), ["/no/such/command"]) == 127


def test_many_at_once(name: str) -> None:
    """Concurrent creators and removers do not disturb each other."""
    all_names = [f"{name}-{index}" for index in range(20)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(netns.create, all_names))
        assert len({netns.inode(path) for path in paths}) == len(all_names)
        assert all(pool.map(netns.delete, all_names))
    assert not netns.names() & set(all_names)
