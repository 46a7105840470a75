"""Commands of the documentation, run as they are written: in a lab, or with containers."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.lab_cluster import REPOSITORY, LabCluster, eventually
from tests.e2e.test_compose import why_not as why_no_containers
from tests.fixtures.docs import Block, all_blocks

BLOCKS = all_blocks()
LAB = [block for block in BLOCKS if block.place == "lab"]
CONTAINERS = [block for block in BLOCKS if block.place == "containers"]

DUNLIN = """#!/bin/bash
# The lab's name goes in before `--`; what follows for ever is followed for a moment.
words=() named="" limit=""
for word in "$@"; do
    if [ "$word" = -- ] && [ -z "$named" ]; then words+=(--name "$LAB"); named=1; fi
    [ "$1 $word" != "events -f" ] || limit="timeout 3"
    words+=("$word")
done
[ -n "$named" ] || words+=(--name "$LAB")
$limit "$REPOSITORY/.venv/bin/dunlin" "${words[@]}"
code=$?
[ -z "$limit" ] || [ $code != 124 ] || code=0
exit $code
"""
UV = '#!/bin/bash\n[ "$1" != run ] || shift\nexec "$@"\n'


def run(block: Block, directory: Path, environment: dict[str, str]) -> None:
    """All commands of a block, in one shell; the first that fails ends it."""
    script = "set -euo pipefail\n" + "\n".join(block.commands)
    done = subprocess.run(
        ["bash", "-x", "-c", script],
        cwd=directory,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, f"{block.name}:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """`dunlin` and `uv` as a reader has them, for the lab of these tests."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name, text in (("dunlin", DUNLIN), ("uv", UV)):
        (directory / name).write_text(text, encoding="ascii")
        (directory / name).chmod(0o755)
    return directory


@pytest.fixture(scope="module")
def shop(cluster: LabCluster) -> Iterator[LabCluster]:
    """The lab with the sample that `make up` brings."""
    cluster.kubectl("apply", "-f", str(REPOSITORY / "lab/dunlin_lab/sample.yaml"))

    def ready() -> bool:
        found = [p for p in cluster.status()["pods"] if p["namespace"] == "shop"]
        return len(found) >= 6 and all(p["ready"] for p in found)

    eventually("the shop is ready", ready)
    cluster.wait()
    yield cluster
    cluster.kubectl("delete", "namespace", "shop", "--timeout=50s")


@pytest.mark.root
@pytest.mark.ovs
@pytest.mark.nats
@pytest.mark.slow
@pytest.mark.parametrize("block", LAB, ids=lambda block: block.name)
def test_in_the_lab(block: Block, shop: LabCluster, programs: Path) -> None:
    """Every command succeeds, in the order of the page."""
    config = str(shop.status()["kubeconfig"])
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "LAB": shop.name,
        "REPOSITORY": str(REPOSITORY),
        "KUBECONFIG": config,
        "HOME": str(Path(config).parent),
    }
    outside = shop.outside["ips"][0]
    commands = tuple(line.replace("172.31.0.1", outside) for line in block.commands)
    try:
        run(Block(block.page, block.line, commands, block.place, ""), REPOSITORY, environment)
    finally:
        # A page may kill it, to show that traffic does not care.
        shop.start("flowctl")
        shop.ready()


@pytest.mark.docker
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("block", CONTAINERS, ids=lambda block: block.name)
def test_with_containers(block: Block, tmp_path: Path) -> None:
    """Every command succeeds; files that it writes are in a folder of its own."""
    reason = why_no_containers()
    if reason:
        pytest.skip(f"docker tier skipped: {reason}")
    for name in ("compose", "lab", "k8s", "images", "dunlin", "services", "uv.lock"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    try:
        run(block, tmp_path, {})
    finally:
        down = ["docker", "compose", "-f", "compose/compose.yaml", "down", "--volumes"]
        subprocess.run(down, cwd=tmp_path, check=False, capture_output=True)


def test_some_pages_are_run() -> None:
    """The search for blocks finds those of the README and of the guides."""
    assert {"README.md", "docs/operate.md", "docs/troubleshoot.md"} <= {b.page for b in LAB}
    assert {block.page for block in CONTAINERS} == {"docs/install.md"}


def test_a_failing_command_is_found(tmp_path: Path) -> None:
    """The oracle can fail: one command that fails fails its block."""
    with pytest.raises(AssertionError, match=r"x\.md:1"):
        run(Block("x.md", 1, ("true", "false", "true"), "lab", ""), tmp_path, {})
