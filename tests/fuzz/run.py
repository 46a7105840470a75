"""
One target, guided by coverage (atheris, libFuzzer's options): `python -m tests.fuzz.run openflow`.

`make fuzz` runs all of them. Ends with libFuzzer's code; what breaks a target is written beside.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["dunlin", "dunlin_agent", "dunlin_planner", "dunlin_watcher"]
):
    from tests.fuzz.targets import TARGETS, seeds


def main() -> None:
    """`NAME CORPUS [OPTION…]`: the corpus is a folder that grows."""
    program, name, folder, *options = sys.argv
    corpus = Path(folder)
    corpus.mkdir(parents=True, exist_ok=True)
    for seed in seeds(name):
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
    atheris.Setup([program, *options, str(corpus)], TARGETS[name])
    atheris.Fuzz()


if __name__ == "__main__":
    main()
