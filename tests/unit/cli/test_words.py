"""What people may write for an object, and what `wait` says of what is missing."""

import pytest

from dunlin.cli.api import explain
from dunlin.cli.main import canonical_object


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("svc/default/web", "service/default/web"),
        ("svc/web", "service/default/web"),
        ("service/shop/web", "service/shop/web"),
        ("po/shop/a", "pod/shop/a"),
        ("node/n1", "node/n1"),
        ("no/n1", "node/n1"),
        ("shop/web", "shop/web"),
    ],
)
def test_objects_as_kubectl_names_them(word: str, expected: str) -> None:
    """Short and plural kinds, and the namespace default."""
    assert canonical_object(word) == expected


def test_an_unfinished_wait_names_switch_and_object() -> None:
    """One line a switch, at most ten objects, and how many more."""
    missing = [
        {"intent": f"all/service/x{i}", "object": f"service/default/x{i}"} for i in range(12)
    ]
    answer = {
        "applied": False,
        "reason": "time is over",
        "switches": [
            {"node": "n1", "applied": True, "missing": []},
            {"node": "n2", "applied": False, "missing": missing},
        ],
    }
    text = explain(answer)
    assert "time is over" in text
    assert "n1" not in text
    assert "n2 lacks service/default/x0" in text
    assert "and 2 more" in text
