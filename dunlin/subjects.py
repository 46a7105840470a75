"""
The NATS grammar: subjects run from wide to narrow.

    dunlin.v1.fact.<kind>.<namespace|_>.<name>
    dunlin.v1.intent.<scope>.<kind>.<key>
    dunlin.v1.applied.<node>
    dunlin.v1.progress.<service>.<replica>
    dunlin.v1.owner.member.<replica>
    dunlin.v1.owner.switch.<dpid, 16 hex digits>
    dunlin.v1.rpc.<service>.<operation>[.<node>]
    dunlin.v1.rpc.flowctl.alive.<replica>

A token is escaped, because Kubernetes names hold dots and dots split subjects: whatever is not a
letter, a digit or one of `-:=,@+` becomes %XX of its UTF-8 octets. The empty token is `_`.
"""

import re
from urllib.parse import quote, unquote

PREFIX = "dunlin.v1"
FACTS_STREAM = "DUNLIN_FACTS"
INTENTS_STREAM = "DUNLIN_INTENTS"
STATE_STREAM = "DUNLIN_STATE"
OWNERS_STREAM = "DUNLIN_OWNERS"
LEASES_BUCKET = "DUNLIN_LEASES"

STREAM_SUBJECTS = {
    FACTS_STREAM: (f"{PREFIX}.fact.>",),
    INTENTS_STREAM: (f"{PREFIX}.intent.>",),
    STATE_STREAM: (f"{PREFIX}.applied.>", f"{PREFIX}.progress.>"),
    OWNERS_STREAM: (f"{PREFIX}.owner.>",),
}
ALL_SCOPE = "all"
_PLAIN = re.compile(r"[A-Za-z0-9:=,@+-]+").fullmatch
"""Most tokens: they are escaped and unescaped a million times at the start of a large cluster."""


def escape(token: str) -> str:
    """One subject token for any text; inverse of `unescape`."""
    if not token:
        return "_"
    if _PLAIN(token):
        return token
    # quote() never touches "_.-~": the two that matter to us are escaped by hand.
    return quote(token, safe="-:=,@+").replace("_", "%5F").replace(".", "%2E").replace("~", "%7E")


def unescape(token: str) -> str:
    """Inverse of `escape`."""
    if "%" in token:
        return unquote(token)
    return "" if token == "_" else token


def _join(*tokens: str) -> str:
    return ".".join((PREFIX, *tokens))


def fact(kind: str, namespace: str, name: str) -> str:
    """Subject of one fact; `namespace` is "" for objects without one."""
    return _join("fact", kind, escape(namespace), escape(name))


def facts_of(kind: str) -> str:
    """Filter for every fact of one kind."""
    return _join("fact", kind, ">")


def intent(scope: str, kind: str, key: str) -> str:
    """Subject of one intent; `scope` is "all" or a node's name."""
    return _join("intent", escape(scope), kind, escape(key))


def intents_of_scope(scope: str) -> str:
    """Filter for every intent of one scope."""
    return _join("intent", escape(scope), ">")


def applied(node: str) -> str:
    """Subject of what one node's switch holds."""
    return _join("applied", escape(node))


def progress(service: str, replica: str) -> str:
    """Subject of one replica's watermark."""
    return _join("progress", service, escape(replica))


def progress_of(service: str) -> str:
    """Filter for the watermarks of all replicas of one service."""
    return _join("progress", service, ">")


def owner_member(replica: str) -> str:
    """Subject of the heartbeats of one replica of flowctl."""
    return _join("owner", "member", escape(replica))


def owner_switch(dpid: int) -> str:
    """Subject of the claim on one switch."""
    return _join("owner", "switch", f"{dpid:016x}")


def rpc(service: str, operation: str, node: str | None = None) -> str:
    """Subject of a request; `node` where one node's owner answers."""
    tokens = ("rpc", service, operation)
    return _join(*tokens) if node is None else _join(*tokens, escape(node))


def stream_of(subject: str) -> str:
    """
    The stream that stores messages of `subject`.

    Raises:
        ValueError: no stream does.
    """
    for stream, filters in STREAM_SUBJECTS.items():
        if any(subject.startswith(pattern[:-1]) for pattern in filters):
            return stream
    raise ValueError(f"no stream stores subject {subject}")


def split(subject: str) -> list[str]:
    """The unescaped tokens after `dunlin.v1`; [] for a foreign subject."""
    if not subject.startswith(PREFIX + "."):
        return []
    return [unescape(token) for token in subject[len(PREFIX) + 1 :].split(".")]
