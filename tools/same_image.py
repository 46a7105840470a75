"""
What differs between two images: `python -m tools.same_image dunlin/cni:dev dunlin/cni:again`.

Compares every file's content, mode, owner and link, and the images' configuration. Times of files
are no part of it: BuildKit before 0.13 cannot set them. Ends with 1 where something differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

Entry = tuple[object, ...]
CONFIGURATION = ("Architecture", "Os", "Config")


def docker(*arguments: str) -> str:
    """What docker prints."""
    command = [os.environ.get("DUNLIN_DOCKER", "docker"), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603


def files(image: str) -> dict[str, Entry]:
    """Path -> type, mode, owner, link, content of everything in an image."""
    created = docker("create", image).strip()
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "image.tar"
            docker("export", "--output", str(path), created)
            with tarfile.open(path) as archive:
                return {member.name: _entry(archive, member) for member in archive}
    finally:
        docker("rm", created)


def _entry(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Entry:
    opened = archive.extractfile(member) if member.isreg() else None
    digest = hashlib.sha256(opened.read()).hexdigest() if opened else ""
    return member.type, member.mode, member.uid, member.gid, member.linkname, digest


def configuration(image: str) -> dict[str, object]:
    """Entry point, environment, user, labels, health check."""
    (found,) = json.loads(docker("image", "inspect", image))
    kept: dict[str, object] = {key: found[key] for key in CONFIGURATION}
    # The name of the container that the builder used last.
    kept["Config"] = {key: value for key, value in found["Config"].items() if key != "Hostname"}
    return kept


def differences(first: dict[str, Entry], second: dict[str, Entry]) -> list[str]:
    """A line for each path that is not the same in both."""
    lines = [f"only in the first: {path}" for path in sorted(first.keys() - second.keys())]
    lines += [f"only in the second: {path}" for path in sorted(second.keys() - first.keys())]
    both = sorted(first.keys() & second.keys())
    return lines + [f"differs: {path}" for path in both if first[path] != second[path]]


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("first")
    parser.add_argument("second")
    arguments = parser.parse_args()
    one, other = files(arguments.first), files(arguments.second)
    found = differences(one, other)
    if configuration(arguments.first) != configuration(arguments.second):
        found.append("differs: the configuration")
    print(f"{arguments.first}: {len(one)} files, {len(found)} differences")
    print(*(f"  {line}" for line in found), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
