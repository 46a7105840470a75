"""What an Open vSwitch of some version can do in its userspace datapath."""

_FRAGMENTS_SINCE = {(3, 1): 7, (3, 2): 5, (3, 3): 4, (3, 4): 2}
"""Release branch -> the first patch release with commit 9f7eb58f77da; 3.5 has it from the start."""

_NULL_NAT_SINCE = {(3, 1): 3, (3, 2): 3}
"""… with commit 1116459b3ba8, "Remove nat_conn"; 3.3 has it from the start."""


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
    return _since(ovs_version, _FRAGMENTS_SINCE, (3, 5))


def survives_null_nat(ovs_version: str) -> bool:
    """
    A connection may be translated to what it is already, as by ct(commit,nat(src)): ADR 0044.

    Before that, conntrack kept a second entry under the very hash of the first. Once the first had
    expired, the next packet found the second alone, and ovs-vswitchd ended by an assertion.
    """
    return _since(ovs_version, _NULL_NAT_SINCE, (3, 3))


def _since(ovs_version: str, patches: dict[tuple[int, int], int], later: tuple[int, int]) -> bool:
    numbers = _numbers(ovs_version)
    branch, patch = numbers[:2], numbers[2]
    return branch >= later or patch >= patches.get(branch, 1 << 16)


def _numbers(ovs_version: str) -> tuple[int, int, int]:
    """Of "3.1.0"; (0, 0, 0) for a version that cannot be read."""
    parts = ovs_version.split(".")
    numbers = [int(part) for part in parts[:3] if part.isdigit()]
    if len(parts) < 2 or len(numbers) < min(len(parts), 3):
        return (0, 0, 0)
    major, minor, *patch = numbers
    return (major, minor, patch[0] if patch else 0)
