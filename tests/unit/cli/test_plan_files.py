"""What `dunlin plan -f` reads, before any planner is asked."""

from pathlib import Path

import pytest

from dunlin.cli.api import ApiError
from dunlin.cli.plan import manifests, plan


def test_documents_of_files_and_directories(tmp_path: Path) -> None:
    """All of a file's documents but empty ones; of a directory its manifests, by name."""
    (tmp_path / "b.yaml").write_text("kind: B\n---\n---\nkind: C\n")
    (tmp_path / "a.json").write_text('{"kind": "A"}')
    (tmp_path / "notes.txt").write_text("kind: D\n")
    found = [item["kind"] for item in manifests([str(tmp_path), str(tmp_path / "a.json")])]
    assert found == ["A", "B", "C", "A"]


@pytest.mark.parametrize("text", ["", "---\n---\n", "# nothing\n"])
def test_a_gate_is_not_green_for_nothing(tmp_path: Path, text: str) -> None:
    """Files without any object are an error by name: a template may have come out empty."""
    empty = tmp_path / "empty.yaml"
    empty.write_text(text)
    with pytest.raises(ApiError, match=r"empty\.yaml: no object in it"):
        plan(files=[str(empty)])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Named, with the reason."""
    (tmp_path / "bad.yaml").write_text("a: [")
    for name, reason in (("nope.yaml", "No such file"), ("bad.yaml", "while parsing")):
        with pytest.raises(ApiError, match=reason):
            list(manifests([str(tmp_path / name)]))
