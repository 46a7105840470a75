"""
Remove a lab, whatever state it is in, and nothing else.

What is ours is known by name (paths), by journal (state), by record and mark (procs). Every step is
idempotent, so `down` can itself be killed and run again. The run directory goes last: while it is
there, the lab can still be found.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dunlin_lab import foreign, hugepages, links, netns, procs
from dunlin_lab.paths import ROOT_ENV, LabPaths
from dunlin_lab.state import Journal, NoLabError, Resource, load_state, locked

_ROUNDS_MAX = 10
"""A process may start another while we end it; after so many rounds something is fighting us."""


class ForeignLabError(Exception):
    """A lab of this name lives under another root directory; the message says which."""


@dataclass(frozen=True, slots=True)
class Removed:
    """What there was: counts of things removed. All zero: there was no such lab."""

    processes: int
    namespaces: int
    links: int
    hugepages: bool
    files: bool
    left: str = ""
    """What may have stayed in somebody's cluster, and why."""


def down(
    paths: LabPaths, *, pool: hugepages.Hugepages | None = None, lock_timeout_s: float = 60.0
) -> Removed:
    """
    Remove everything of one lab. No lab is no error.

    Raises:
        LabBusyError: another command works on it.
        ForeignLabError: the lab of this name is another root's.
        ProcessError, NetnsError, HugepageError, NetlinkError: the kernel refused; run it again.
    """
    with locked(paths, lock_timeout_s):
        _check_owner(paths)
        removed = _down(paths, pool or hugepages.Hugepages())
        paths.lock.unlink(missing_ok=True)
    # The root is ours only when it is the last lab's; somebody's $DUNLIN_LAB_ROOT with files stays.
    with suppress(OSError):
        paths.root.rmdir()
    return removed


def _check_owner(paths: LabPaths) -> None:
    """Names depend on the lab's name alone; the bridge, made first, says whose they are."""
    owner = links.owner_of(paths.mgmt_bridge)
    if owner not in (None, str(paths.run_dir)):
        raise ForeignLabError(
            f"lab {paths.name} lives in {owner}, not in {paths.run_dir}: set {ROOT_ENV} to use it"
        )


def _down(paths: LabPaths, pool: hugepages.Hugepages) -> Removed:
    """The steps, in the order in which nothing can come back."""
    journal = Journal(paths.journal).read()
    namespaces = _namespaces(paths, journal)
    ended = _end_processes(paths, namespaces)
    left = _leave(paths)
    _unmount(paths, journal)
    try:
        pages = pool.give_back(str(paths.run_dir))
    except hugepages.HugepageError:
        # A kernel without hugepages has none of ours.
        pages = False
    link_count = sum(links.delete(name) for name in _links(paths, journal))
    netns_count = sum(netns.delete(name) for name in namespaces)
    files = paths.run_dir.exists()
    if files:
        shutil.rmtree(paths.run_dir)
    return Removed(ended, netns_count, link_count, pages, files, left)


def _leave(paths: LabPaths) -> str:
    """After the end of our kubelet, which would come back with its Nodes."""
    try:
        state = load_state(paths)
    except NoLabError:
        return ""
    theirs = state.extra.get("kubernetes") == "kubeconfig"
    return foreign.leave(Path(state.kubeconfig), paths.name) if theirs else ""


def _namespaces(paths: LabPaths, journal: tuple[Resource, ...]) -> list[str]:
    """Present ones, by journal and by name: the journal may be gone, the names cannot lie."""
    named = {name for name in netns.names() if paths.owns_netns(name)}
    written = {r.name for r in journal if r.kind == "netns" and r.name in netns.names()}
    return sorted(named | written)


def _links(paths: LabPaths, journal: tuple[Resource, ...]) -> list[str]:
    """Links of ours on the host; the bridge last."""
    here = set(links.names_here())
    written = {r.name for r in journal if r.kind == "link"} & here
    named = {name for name in here if paths.owns_link(name)}
    return sorted(written | named, key=lambda name: (name == paths.mgmt_bridge, name))


def _end_processes(paths: LabPaths, namespaces: list[str]) -> int:
    """End what is recorded, marked, or lives in a namespace of ours (a shell of `lab exec`)."""
    registry = procs.Processes(paths)
    inodes = [netns.inode(netns.path_of(name)) for name in namespaces if netns.exists(name)]
    ended = 0
    for _ in range(_ROUNDS_MAX):
        living = registry.living() | procs.inside(inodes)
        if not living:
            return ended
        ended += procs.end(living, grace_s=2.0)
    raise procs.ProcessError(f"lab {paths.name}: processes keep coming back: {sorted(living)}")


def _unmount(paths: LabPaths, journal: tuple[Resource, ...]) -> None:
    """Mounts of ours: below the run directory, or what rmtree would otherwise reach into."""
    written = {Path(r.name) for r in journal if r.kind == "mount"}
    below = {
        Path(line.split()[1].encode().decode("unicode_escape"))
        for line in Path("/proc/self/mounts").read_text().splitlines()
        if _is_below(line.split()[1], paths.run_dir)
    }
    for path in sorted(written | below, key=lambda p: -len(p.parts)):
        hugepages.unmount(path)


def _is_below(mount_point: str, directory: Path) -> bool:
    r"""Escapes of /proc/self/mounts (\040) do not occur in a run directory of ours."""
    return mount_point.startswith(f"{os.fspath(directory)}/")
