"""Who the services are to NATS: a seed in a file for each, and the public keys for the servers."""

from __future__ import annotations

import secrets
from collections.abc import Iterable
from pathlib import Path

from dunlin.bus import nkeys
from dunlin_lab.state import write_atomically


def make(folder: Path, users: Iterable[str]) -> dict[str, str]:
    """
    New seeds, each in the file `folder/<user>` that its owner alone can read; old ones go.

    Returns:
        The public key of each user.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = {}
    for user in users:
        seed = nkeys.seed_text(secrets.token_bytes(nkeys.KEY_BYTES))
        write_atomically(folder / user, seed.encode() + b"\n")
        found[user] = nkeys.key_pair(seed).public
    return found
