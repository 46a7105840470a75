"""What an Open vSwitch of some version can do in its userspace datapath."""

_FRAGMENTS_SINCE = {(3, 1): 7, (3, 2): 5, (3, 3): 4, (3, 4): 2}
"""Release branch -> the first patch release with commit 9f7eb58f77da; 3.5 has it from the start."""


def tracks_sctp(ovs_version: str) -> bool:
    """
    Open vSwitch translates SCTP ports: 3.2 and later.

    A version that cannot be read does not: refused is better than silently wrong.
    """
    return _numbers(ovs_version)[:2] >= (3, 2)


def tracks_fragments(ovs_version: str) -> bool:
    """
    Every fragment of a datagram shows the original port that ct() found in the first one.

    Without it a Service cannot be known by the fragments of a flow's first datagram.
    """
    numbers = _numbers(ovs_version)
    branch, patch = numbers[:2], numbers[2]
    return branch >= (3, 5) or patch >= _FRAGMENTS_SINCE.get(branch, 1 << 16)


def _numbers(ovs_version: str) -> tuple[int, int, int]:
    """Of "3.1.0"; (0, 0, 0) for a version that cannot be read."""
    parts = ovs_version.split(".")
    numbers = [int(part) for part in parts[:3] if part.isdigit()]
    if len(parts) < 2 or len(numbers) < min(len(parts), 3):
        return (0, 0, 0)
    major, minor, *patch = numbers
    return (major, minor, patch[0] if patch else 0)
