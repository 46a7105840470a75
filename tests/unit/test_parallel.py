"""Which worker runs what: tests/parallel.py."""

from pathlib import Path

import pytest

from tests.parallel import OWN_LABS, SHARED, half

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("nodeid", "expected"),
    [
        ("tests/e2e/test_pods.py::test_node_to_pod", "lab"),
        ("tests/e2e/test_chaos.py::test_chaos", "others"),
        ("tests/e2e/lab/test_ovs.py::test_start[dpdk]", "others"),
        ("tests/packets/test_services.py::test_many_endpoints[300]", "others"),
    ],
)
def test_half(nodeid: str, expected: str) -> None:
    """The shared lab's tests are one half, everything else the other."""
    assert half(nodeid) == expected


def test_each_module_is_where_it_belongs() -> None:
    """Whoever asks for the shared lab is with it; a second one would be started otherwise."""
    found = {path.stem.removeprefix("test_"): path for path in (ROOT / SHARED).parent.glob("*.py")}
    texts = {name: path.read_text(encoding="utf-8") for name, path in found.items()}
    assert set(OWN_LABS) <= set(texts)
    asking = {name for name, text in texts.items() if "cluster: LabCluster" in text}
    assert asking
    assert not asking & set(OWN_LABS)
