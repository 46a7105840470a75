"""Names of a lab's things: closed, short enough, never another lab's."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dunlin_lab.paths import LabNameError, LabPaths, node_name

LAB_NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?", fullmatch=True)
FORMS = st.one_of(
    st.integers(1, 200).map(lambda i: f"n{i}"),
    st.from_regex(r"p-[0-9a-f]{10}", fullmatch=True),
    st.sampled_from(["outside", "fabric"]),
)


@given(LAB_NAMES, LAB_NAMES, FORMS)
def test_no_lab_owns_a_namespace_of_another(one: str, other: str, form: str) -> None:
    """Whatever two labs are called, `down` of one never takes a namespace of the other."""
    name = f"dl-{one}-{form}"
    assert LabPaths(one, Path("/r")).owns_netns(name)
    assert LabPaths(other, Path("/r")).owns_netns(name) == (one == other)


@pytest.mark.parametrize("one", ["a", "a-n1", "a-p-0123456789", "a-outside"])
def test_names_that_look_like_anothers_are_told_apart(one: str) -> None:
    """Lab names made to look like namespace names do not reach lab "a"."""
    name = LabPaths(one, Path("/r")).node_netns("n1")
    assert LabPaths("a", Path("/r")).owns_netns(name) == (one == "a")


@given(LAB_NAMES, st.integers(1, 200))
def test_link_names_fit_the_kernel_and_are_owned(lab: str, index: int) -> None:
    """IFNAMSIZ leaves 15 characters."""
    paths = LabPaths(lab, Path("/r"))
    for name in (paths.mgmt_bridge, paths.mgmt_port(index)):
        assert len(name) <= 15
        assert paths.owns_link(name)
    assert not paths.owns_link("eth0")


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a" * 21, "a/b", "a.b", "../x"])
def test_bad_lab_names_are_refused(name: str) -> None:
    """A name that could leave its folder or its kernel limits is a clear error."""
    with pytest.raises(LabNameError, match="lab name"):
        LabPaths.named(name, Path("/r"))


def test_a_root_too_deep_for_sockets_is_refused() -> None:
    """A unix socket path has 107 bytes; better said at once than by OVS later."""
    with pytest.raises(LabNameError, match="DUNLIN_LAB_ROOT"):
        LabPaths.named("dunlin", Path("/" + "x" * 80))


def test_the_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """DUNLIN_LAB_ROOT moves everything, an argument moves it further."""
    monkeypatch.setenv("DUNLIN_LAB_ROOT", "/elsewhere")
    assert LabPaths.named("x").run_dir == Path("/elsewhere/x")
    assert LabPaths.named("x", Path("/r")).run_dir == Path("/r/x")


@pytest.mark.parametrize("index", [0, 201])
def test_node_indexes_are_bounded(index: int) -> None:
    """Host numbers of a /24 are what bounds a lab."""
    with pytest.raises(LabNameError, match="nodes 1 to 200"):
        node_name(index)
