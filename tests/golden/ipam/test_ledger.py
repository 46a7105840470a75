"""The ledger and the endpoint intents of a small history, as they go over the wire."""

import json
from collections.abc import Callable

from dunlin import wire
from dunlin.events.facts import Meta
from tests.unit.ipam.build import attachment, ips, ledger, node, pod, request, switch


def test_ledger(golden: Callable[[str, str], None]) -> None:
    """One node with podCIDRs, one without; ADD, DEL, adoption, a stranger."""
    book = ledger(node("n1", "10.244.1.0/24", "fd00:10:244:1::/64"), node("n2"), switch("n1"))
    for name, on in (("web", "n1"), ("db", "n1"), ("web", "n2")):
        found = book.give(request(name, on, container_id=f"c-{name}-{on}"))
        book.tell(
            attachment(
                name,
                *found,
                namespace=on,
                container_id=f"c-{name}-{on}",
                meta=Meta(observed_ms=1_000_001),
            )
        )
    book.tell(pod("old", "10.244.1.77"), pod("odd", "192.0.2.1"))
    book.tell(attachment("thief", "10.244.1.2", ips=ips("10.244.1.2")))
    book.forget(attachment("db", namespace="n1", container_id="c-db-n1"))
    book.release(request("db", container_id="c-db-n1"))
    book.work("n1")
    plans = {name: book.plan(name) for name in ("n1", "n2")}
    lines = [line.fact for _, line in sorted(book.state.lines.items(), key=str)]
    golden(
        "ledger.json",
        json.dumps(
            {
                "blocks": [wire.to_builtins(use.fact) for use in book.state.uses.values()],
                "addresses": [wire.to_builtins(fact) for fact in lines],
                "intents": {
                    intent.subject: wire.to_builtins(intent)
                    for plan in plans.values()
                    for intent in plan.intents
                },
                "findings": [wire.to_builtins(f) for p in plans.values() for f in p.findings],
            },
            indent=2,
        )
        + "\n",
    )
