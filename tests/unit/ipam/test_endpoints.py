"""Which endpoint intents follow from attachments and ledger."""

from typing import Any

import pytest

from dunlin.events.facts import Meta
from dunlin_ipam.core.violations import violations
from tests.unit.ipam.build import Ledger, attachment, ips, ledger, node, pod, request, switch

CIDR = "10.244.1.0/24"


def attached() -> Ledger:
    """Pod web has 10.244.1.2 and stands on n1."""
    book = ledger(node("n1", CIDR), switch(), pod("web"))
    assert book.give(request()) == ["10.244.1.2"]
    book.tell(pod("web", "10.244.1.2"))
    book.tell(attachment("web", "10.244.1.2", meta=Meta(observed_ms=5)))
    return book


def test_an_attachment_with_its_addresses_is_an_endpoint() -> None:
    """Scope, key, object, port, MAC and addresses."""
    (intent,) = attached().plan().intents
    assert intent.id == "n1/endpoint/default/web/eth0"
    assert intent.object == "pod/default/web"
    assert (intent.ofport, intent.mac, intent.ips) == (10, "02:00:00:00:00:05", ips("10.244.1.2"))
    assert intent.trigger_ms == 5


def test_limits_are_those_of_the_pod_that_lives_there() -> None:
    """They come with its fact, change with it, and are not those of a later Pod of that name."""
    book = attached()
    assert [(i.ingress_bps, i.egress_bps) for i in book.plan().intents] == [(0, 0)]
    book.tell(pod("web", "10.244.1.2", ingress_bps=5_000, egress_bps=7_000))
    assert [(i.ingress_bps, i.egress_bps) for i in book.plan().intents] == [(5_000, 7_000)]
    book.tell(pod("web", ingress_bps=1_000, meta=Meta(uid="another")))
    assert [(i.ingress_bps, i.egress_bps) for i in book.plan().intents] == [(0, 0)]


def test_a_stranger_with_the_same_address_gets_no_flows() -> None:
    """The contradiction names both; the owner's intent stays."""
    book = attached()
    book.tell(attachment("thief", "10.244.1.2"))
    book.work()
    plan = book.plan()
    assert [intent.pod_name for intent in plan.intents] == ["web"]
    (finding,) = plan.findings
    assert "default/thief" in finding.reason
    assert "default/web" in finding.reason
    assert finding.severity == "conflict"
    assert violations(book.state) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"ips": ()}, "no address"),
        ({"ips": ips("192.0.2.77")}, "no block"),
        ({"ofport": -1}, "OpenFlow port -1"),
        ({"ips": ips("10.244.1.99")}, "10.244.1.99 is not in the ledger"),
    ],
)
def test_attachments_that_make_no_sense(changes: dict[str, Any], word: str) -> None:
    """Named, and without flows; others are not touched."""
    book = attached()
    book.tell(attachment("bad", **({"ips": ips("10.244.1.3")} | changes)))
    plan = book.plan()
    assert [intent.pod_name for intent in plan.intents] == ["web"]
    assert any(word in finding.reason for finding in plan.findings)
    assert all("default/bad" in finding.reason for finding in plan.findings)


def test_the_newer_of_two_sandboxes() -> None:
    """One intent for a Pod's interface, whichever fact came last."""
    book = attached()
    book.pass_time(1)
    book.give(request("web", container_id="new"))
    book.tell(attachment("web", "10.244.1.3", container_id="new", ofport=11))
    book.tell(attachment("web", "10.244.1.2", meta=Meta(observed_ms=6)))
    plan = book.plan()
    assert [intent.ofport for intent in plan.intents] == [11]
    (finding,) = plan.findings
    assert finding.name == "c-web/eth0"


@pytest.mark.parametrize(
    ("ip", "word"),
    [
        ("192.0.2.9", "no block"),
        ("10.244.1.1", "gateway"),
        ("10.244.1.255", "broadcast"),
        ("10.244.1.2", "belongs to Pod default/web"),
    ],
)
def test_pods_with_an_invalid_address(ip: str, word: str) -> None:
    """Object, field and reason; the ledger does not take it in, the rest works."""
    book = attached()
    book.tell(pod("odd", ip))
    book.work()
    plan = book.plan()
    assert len(plan.intents) == 1
    (finding,) = plan.findings
    assert (finding.object, finding.field) == ("Pod default/odd", "status.podIPs")
    assert word in finding.reason


def test_violations_can_be_found() -> None:
    """Each invariant has a state that breaks it: the oracle of the stress tests is not blind."""
    book = attached()
    book.tell(pod("twin", "10.244.1.2"))
    assert violations(book.state) == [
        "10.244.1.2 is in the status of Pods default/twin, default/web"
    ]
    book = attached()
    line = book.line("10.244.1.2").fact
    from msgspec.structs import replace

    for ip, word in (("10.244.1.1", "gateway"), ("10.9.9.9", "no block")):
        (address,) = ips(ip)
        book = attached()
        book.tell(replace(line, name=ip, ip=address, owner="x/eth0"))
        (found,) = violations(book.state)
        assert word in found
    from tests.unit.ipam.build import block

    book = attached()
    book.tell(block("10.244.0.0/22", "n2"))
    assert violations(book.state) == ["blocks 10.244.0.0/22 and 10.244.1.0/24 overlap"]
