"""Where a lab's services answer, for the `dunlin` command line."""

from __future__ import annotations

from pathlib import Path

from dunlin.cli.api import ApiError, Installation
from dunlin_lab.catalogue import split_process
from dunlin_lab.paths import LabPaths
from dunlin_lab.state import NoLabError, load_state


def installation(name: str) -> Installation:
    """
    The services of the lab of that name.

    Raises:
        ApiError: there is no such lab.
    """
    try:
        state = load_state(LabPaths.named(name))
    except NoLabError as error:
        raise ApiError(f"{error}; `dunlin lab up` makes one, or give --url") from error
    urls: dict[str, list[str]] = {}
    for key, url in sorted(state.extra.items()):
        if key.startswith("url:"):
            urls.setdefault(split_process(key[4:])[0], []).append(url)
    token_file = Path(state.extra.get("token_file", ""))
    token = token_file.read_text().strip() if token_file.is_file() else ""
    return Installation(urls, token)
