"""What the watcher does not load."""

import subprocess
import sys

PROGRAM = """
import sys
import dunlin_watcher.__main__
print(*(name for name in sys.modules if name.startswith("kubernetes.")))
"""


def test_no_model_is_loaded() -> None:
    """Its image has no bytecode of the package's models and APIs (images/Dockerfile)."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "kubernetes.aio.client.rest" in loaded
    assert not [name for name in loaded if ".client.models." in name or ".client.api." in name]
