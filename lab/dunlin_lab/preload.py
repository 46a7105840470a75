"""
What ovs-vswitchd preloads (ADR 0043): larger buffers of ordinary ports, and jemalloc.

Open vSwitch takes 32 buffers for each port each time it looks for packets; glibc's malloc keeps
seven of that size at hand, jemalloc as many as it is told to.
"""

import ctypes.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path

PACKET_BUFFERS = Path(__file__).parents[2] / "build" / "lib" / "dunlin-packet-buffers.so"
JEMALLOC = "jemalloc"
MALLOC_CONF = "tcache_nslots_small_min:128"
"""Two allocations a buffer, and room."""


@cache
def _jemalloc() -> str | None:
    """Looking for it starts a process, and a lab has a switch for each of its nodes."""
    return ctypes.util.find_library(JEMALLOC)


def environment() -> Mapping[str, str]:
    """
    For ovs-vswitchd; jemalloc only where it is installed (Debian: libjemalloc2).

    Raises:
        FileNotFoundError: PACKET_BUFFERS was not built.
    """
    if not PACKET_BUFFERS.exists():
        raise FileNotFoundError(f"no {PACKET_BUFFERS}: `make build` makes it")
    libraries, found = [str(PACKET_BUFFERS)], _jemalloc()
    if found is not None:
        libraries.append(found)
    return {"LD_PRELOAD": ":".join(libraries), "MALLOC_CONF": MALLOC_CONF}
