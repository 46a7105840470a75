"""docs/: generated pages are current, links lead somewhere, and commands name what exists."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dunlin.service.settings import describe
from tests.fixtures.docs import MARKER, PLACES, Block, all_blocks, blocks_of
from tools.reference import SERVICES, settings_of

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/design/*.md"), ROOT / "README.md"],
    key=lambda page: page.as_posix(),
)
NAMES = ("install", "operate", "troubleshoot", "tune", "security", "migrate")
GUIDES = [*(ROOT / f"docs/{name}.md" for name in NAMES), ROOT / "README.md"]


def test_generated_pages_are_current() -> None:
    """`make docs` would change nothing."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.docs", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_the_site_builds(tmp_path: Path) -> None:
    """Mkdocs takes every page, and each link between pages and to a heading leads somewhere."""
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference/settings/index.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_pages_link_to_exist(page: Path) -> None:
    """Every relative link is a file of the repository."""
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), target


def commands(page: Path) -> Iterator[str]:
    """Commands of code spans and blocks, without comments and prompts."""
    text = page.read_text(encoding="utf-8")
    for block in re.findall(r"```(?:bash)?\n(.*?)```", text, re.DOTALL):
        yield from (line.split(" #")[0].strip() for line in block.splitlines())
    plain = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from re.findall(r"`([^`\n]+)`", plain)


def problem(command: str) -> str:
    """What a command names that does not exist; "" for one that is well, or not ours to know."""
    words = command.replace("uv run ", "").split()
    if not words:
        return ""
    if words[0] == "make" and len(words) > 1:
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        return "" if re.search(rf"^{re.escape(words[1])}:", makefile, re.MULTILINE) else "no target"
    if words[0].startswith("tools/"):
        return "" if os.access(ROOT / words[0], os.X_OK) else "no such tool"
    if words[0] == "dunlin" and len(words) > 1 and words[1] != "lab":
        known = (ROOT / "docs/reference/cli.md").read_text(encoding="utf-8")
        return "" if f"`dunlin {words[1]}" in known else "no such command"
    if words[0] in {"kubectl", "docker"}:
        for flag in ("-k", "-f"):
            if flag in words[:-1]:
                path = words[words.index(flag) + 1]
                if path != "-" and not (ROOT / path).exists():
                    return f"no file {path}"
    return ""


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_commands_name_what_exists(page: Path) -> None:
    """Targets of make, tools, subcommands of dunlin, files given to kubectl and docker."""
    found = [(command, problem(command)) for command in commands(page)]
    assert found
    assert not [item for item in found if item[1]]


@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.name)
def test_names_of_settings_and_alerts_exist(page: Path) -> None:
    """A setting or an alert that a page names is one."""
    text = page.read_text(encoding="utf-8")
    known = {item.env for service in SERVICES for item in describe(settings_of(service))}
    # Read by Open vSwitch's container, and by Compose.
    for file in ("images/ovs-start", "compose/compose.yaml"):
        known |= set(re.findall(r"\$\{(DUNLIN_[A-Z_]+)", (ROOT / file).read_text(encoding="utf-8")))
    for name in re.findall(r"\bDUNLIN_[A-Z_]+[A-Z]\b", text):
        assert name in known, name
    rules = (ROOT / "k8s/base/observe/rules.yaml").read_text(encoding="utf-8")
    alerts = {rule["alert"] for group in yaml.safe_load(rules)["groups"] for rule in group["rules"]}
    assert set(re.findall(r"`(Dunlin[A-Z][A-Za-z]+)`", text)) <= alerts


@pytest.mark.parametrize("block", all_blocks(), ids=lambda block: block.name)
def test_every_block_of_commands_is_run_or_says_why_not(block: Block) -> None:
    """A comment above it names the tests' place that runs it, or the reason why none can."""
    assert block.place in PLACES or len(block.reason) > 10, (
        f"{block.name}: put `<!-- run: lab -->` or `<!-- not run: why -->` above it"
    )


def test_the_search_for_blocks_can_fail() -> None:
    """Blocks without a marker are found, fenced or indented; pictures are left alone."""
    text = "# x\n\n```\nmake up\n```\n\n    kubectl get pods\n\n```\na ──> b\n```\n"
    assert [(b.line, b.place, b.reason) for b in blocks_of("x", text)] == [(3, "", ""), (7, "", "")]
    assert MARKER.match("<!-- not run: needs a cluster -->")


def test_alerts_lead_to_headings() -> None:
    """The runbook of each alert is a page of ours, and its heading is there."""
    rules = (ROOT / "k8s/base/observe/rules.yaml").read_text(encoding="utf-8")
    for path, anchor in re.findall(r"(docs/[a-zA-Z/]+\.md)(?:#([a-z-]+))?", rules):
        text = (ROOT / path).read_text(encoding="utf-8")
        headings = [
            re.sub(r"[^a-z -]", "", h.lower()) for h in re.findall(r"^#+ (.*)", text, re.MULTILINE)
        ]
        assert not anchor or anchor in {heading.replace(" ", "-") for heading in headings}, anchor
