"""What people read of an explanation, of counters and of denied packets."""

from typing import Any

from rich.console import Console

from dunlin.cli.policy import counted, denied, explained

POD = {"kind": "pod", "name": "shop/web", "node": "n1", "ip": "10.0.1.11"}
DB = {"kind": "pod", "name": "shop/db", "node": "n2", "ip": "10.0.2.12"}
POLICY = {"kind": "NetworkPolicy", "namespace": "shop", "name": "db", "revision": 7}
WIDE = {"kind": "ClusterNetworkPolicy", "namespace": "", "name": "wide", "revision": 9}


def shown(*parts: Any) -> str:
    """As on a wide terminal without colours."""
    console = Console(width=200, color_system=None)
    with console.capture() as capture:
        for part in parts:
            console.print(part)
    return capture.get()


def rule(policy: dict[str, Any], index: int, **values: Any) -> dict[str, Any]:
    """One rule of an answer."""
    base = {"policy": policy, "tier": "default", "direction": "ingress", "rule": index, "name": ""}
    return {**base, "action": "Accept", **values}


def judgement(**values: Any) -> dict[str, Any]:
    """One direction of an answer."""
    base = {"direction": "ingress", "node": "n2", "allowed": True, "why": "rule", "in_force": True}
    return {**base, "rules": [], "passed": [], "isolated_by": [], **values}


def answer(verdict: str, *judgements: dict[str, Any], **values: Any) -> dict[str, Any]:
    """An answer of one path."""
    path = {"source": POD, "asked": "10.96.0.9 port 80", "destination": DB, "port": 5432}
    path |= {"verdict": verdict, "reason": "because", "judgements": list(judgements)}
    base = {"source": "pod shop/web", "destination": "service shop/db", "port": "80/TCP"}
    return {**base, "verdict": verdict, "paths": [path], "complete": True, **values}


def test_allowed() -> None:
    """Every rule that allows it, its revision, and the Service that was asked."""
    both = judgement(rules=[rule(POLICY, 1), rule(WIDE, 0, tier="admin", name="dns")])
    text = shown(*explained(answer("ALLOWED", both)))
    assert text.splitlines()[0] == "ALLOWED  pod shop/web -> service shop/db 80/TCP"
    assert "pod shop/web (10.0.1.11) -> pod shop/db (10.0.2.12) port 5432" in text
    assert "(by 10.96.0.9 port 80)" in text
    assert "allowed by NetworkPolicy shop/db, ingress rule 1 [revision 7]" in text
    assert "and by ClusterNetworkPolicy wide, tier admin, ingress rule 0 (dns)" in text


def test_denied() -> None:
    """Everybody who isolates; what passed the decision on; that it is not in force yet."""
    isolated = judgement(
        allowed=False, why="isolated", isolated_by=[POLICY], passed=[rule(WIDE, 2)], in_force=False
    )
    text = shown(*explained(answer("DENIED", isolated, complete=False)))
    assert "denied: isolated by NetworkPolicy shop/db [revision 7], and no rule allows it" in text
    assert "left to the next tier by ClusterNetworkPolicy wide, ingress rule 2" in text
    assert "not in force yet on n2" in text
    assert "and more endpoints" in text


def test_unreachable_and_itself() -> None:
    """Where no policy is the reason, the reason is said."""
    assert "because" in shown(*explained(answer("UNREACHABLE")))
    assert "because" in shown(*explained(answer("ALLOWED")))


def test_counters() -> None:
    """Rules and denials as two tables; a policy that went is marked."""
    numbers = {"connections": 3, "packets": 40, "bytes": 5000}
    one = {"direction": "ingress", "rule": 0, "name": "", "action": "Accept", **numbers}
    gone = {"namespace": "shop", "name": "db", "exists": False, "rules": [one]}
    row = {"policies": ["shop/a", "shop/b"], "direction": "ingress", "rule": None}
    found = {"items": [gone], "denied": [{**row, "packets": 9, "bytes": 90}]}
    text = shown(*counted(found))
    assert "shop/db (gone)" in text
    assert "shop/a, shop/b" in text


def test_denied_packets() -> None:
    """Pods by name, others by address, and the Service that was asked."""
    one = {
        "at_ms": 0, "node": "n1", "direction": "egress", "policies": ["shop/a"], "rule": -1,
        "source": "shop/web", "source_ip": "10.0.1.11", "source_port": 4, "destination": "",
        "destination_ip": "192.0.2.1", "destination_port": 53, "protocol": "UDP",
        "asked": "10.96.0.1:53", "packets": 2,
    }  # fmt: skip
    text = shown(*denied([one, {**one, "rule": 3, "destination_ip": "fd00::1", "asked": ""}]))
    assert "00:00:00.000" in text
    assert "shop/web:4 -> 192.0.2.1:53 (by 10.96.0.1:53) UDP denied: isolated by shop/a (2" in text
    assert "shop/web:4 -> [fd00::1]:53 UDP denied: rule 3 of shop/a" in text
    assert "nothing" in shown(*denied([]))
