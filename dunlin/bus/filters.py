"""Subject filters as NATS has them: `*` is one token, a closing `>` one or more."""

from collections.abc import Callable, Iterable


def matches(pattern: str, subject: str) -> bool:
    """`subject` (without wildcards) is one that `pattern` names."""
    wanted = pattern.split(".")
    tokens = subject.split(".")
    for position, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > position
        if position >= len(tokens) or token not in ("*", tokens[position]):
            return False
    return len(wanted) == len(tokens)


def covers(wide: str, narrow: str) -> bool:
    """Every subject that `narrow` names, `wide` names too; both may hold wildcards."""
    wanted = wide.split(".")
    tokens = narrow.split(".")
    for position, token in enumerate(wanted):
        if token == ">":
            return len(tokens) > position
        if position >= len(tokens) or tokens[position] == ">":
            return False
        if token not in ("*", tokens[position]):
            return False
    return len(wanted) == len(tokens)


def overlap(one: str, other: str) -> bool:
    """Some subject is named by both."""
    left, right = one.split("."), other.split(".")
    for a, b in zip(left, right, strict=False):
        if ">" in (a, b):
            return True
        if a != b and "*" not in (a, b):
            return False
    return len(left) == len(right)


def reduce_filters(filters: Iterable[str]) -> tuple[str, ...]:
    """
    The same subjects by filters that do not overlap, as a JetStream consumer demands, sorted.

    Raises:
        ValueError: two of them overlap and neither covers the other.
    """
    kept: list[str] = []
    for candidate in sorted(set(filters), key=lambda f: (f.count("."), f)):
        if any(covers(wide, candidate) for wide in kept):
            continue
        kept = [narrow for narrow in kept if not covers(candidate, narrow)]
        for other in kept:
            if overlap(other, candidate):
                raise ValueError(f"filters overlap: {other} and {candidate}")
        kept.append(candidate)
    return tuple(sorted(kept))


def predicate(filters: Iterable[str]) -> Callable[[str], bool]:
    """Whether a subject is named by any of `filters`; none at all names everything."""
    patterns = tuple(filters)
    if not patterns:
        return lambda _subject: True
    return lambda subject: any(matches(pattern, subject) for pattern in patterns)
