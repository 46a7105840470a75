"""Start-up time: leaving optional packages of packages out."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def absent(*names: str) -> Iterator[None]:
    """
    Imports within see these packages as not installed, unless they are imported already.

    For packages that import another one only if it is there, for a feature that Dunlin does not
    use: every service starts faster for each one left out.
    """
    hidden = [name for name in names if name not in sys.modules]
    for name in hidden:
        # What the import system itself defines as "this import fails".
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]
