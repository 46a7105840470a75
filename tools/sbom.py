"""
What an image of ours is made of, as one CycloneDX document on standard output.

    python -m tools.sbom dunlin/planner:dev

Python packages come from the list that the build left in the image (uv.lock, with hashes), Debian's
from its dpkg. Needs a Docker engine that has the image; starts the image once, without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

SCRIPT = (
    "dpkg-query -W -f='${Package}\\t${Version}\\t${Architecture}\\n'; echo; "
    "cat /opt/dunlin/sbom.json 2>/dev/null || echo '{}'"
)


def debian_component(line: str) -> dict[str, Any]:
    """One line of dpkg-query: name, version, architecture, separated by tabs."""
    name, version, architecture = line.split("\t")
    purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B')}?arch={architecture}"
    return {
        "type": "library",
        "name": name,
        "version": version,
        "purl": purl,
        "bom-ref": purl,
    }


def document(image: str, text: str) -> dict[str, Any]:
    """
    The whole list.

    Args:
        text: lines of dpkg-query, an empty line, CycloneDX JSON (`{}` where there is no Python).
    Raises:
        ValueError: the text is something else.
    """
    packages, _, python = text.partition("\n\n")
    found: dict[str, Any] = json.loads(python)
    debian = [debian_component(line) for line in packages.splitlines()]
    if not debian:
        raise ValueError(f"{image}: dpkg knows no package")
    metadata = {"component": {"type": "container", "name": image}}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": found.get("specVersion", "1.5"),
        "version": 1,
        "metadata": metadata,
        "components": [*debian, *found.get("components", [])],
    }


def main(arguments: list[str]) -> int:
    """Entry point."""
    if len(arguments) != 1:
        sys.stderr.write("usage: python -m tools.sbom IMAGE\n")
        return 2
    (image,) = arguments
    command = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "sh", image]
    done = subprocess.run([*command, "-c", SCRIPT], capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        sys.stderr.write(f"{image}: {done.stderr}")
        return 1
    sys.stdout.write(json.dumps(document(image, done.stdout), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
