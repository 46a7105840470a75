"""Golden files: `make golden-update` writes them anew; read the diff."""

from collections.abc import Callable
from pathlib import Path

import pytest

Golden = Callable[[str, str], None]


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--golden-update`."""
    parser.addoption("--golden-update", action="store_true", help="write the golden files anew")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Golden:
    """Compares text with the file of that name beside the test, or writes it."""
    update = request.config.getoption("--golden-update", default=False)
    folder = Path(str(request.path)).parent

    def check(name: str, text: str) -> None:
        path = folder / name
        if update:
            path.write_text(text, encoding="utf-8")
        assert path.exists(), f"{path.name} is missing: make golden-update"
        assert text == path.read_text(encoding="utf-8"), f"{path.name}: make golden-update"

    return check
