"""Write the pages that are generated from code: `python -m tools.docs [--check]`."""

from __future__ import annotations

import sys
from pathlib import Path

from dunlin.openflow import cookie
from dunlin.pipeline import layout
from tools import chart, dashboards, reference

ROOT = Path(__file__).resolve().parent.parent


def pipeline_page() -> str:
    """docs/pipeline.md."""
    tables = "\n".join(
        f"| {int(table)} | {table.title} | {layout.PURPOSE[table]} |" for table in layout.Table
    )
    zones = "\n".join(f"| {zone.name} | {int(zone)} |" for zone in layout.Zone)
    marks = "\n".join(
        f"| {name} | {mark.value:#x} | {mark.mask:#x} |"
        for name, mark in (
            ("service", layout.SERVICE),
            ("hairpin", layout.HAIRPIN_MARK),
            ("denied", layout.DENIED),
            ("from beyond the node: replies as they are", layout.EXTERNAL_MARK),
            ("source translated", layout.SNAT_MARK),
            ("from the node's kernel: replies to it", layout.VIA_NODE_MARK),
            ("generation of policy", layout.Mark(layout.GENERATION_MASK, layout.GENERATION_MASK)),
        )
    )
    priorities = "\n".join(f"| {p.name} | {int(p)} |" for p in layout.Priority)
    kinds = "\n".join(f"| {kind} | {number} |" for kind, number in cookie.KINDS.items())
    return _PAGE.format(
        tables=tables,
        zones=zones,
        marks=marks,
        priorities=priorities,
        kinds=kinds,
        owner=f"{cookie.OWNER:#x}",
        hairpin_v4=layout.HAIRPIN_V4,
        hairpin_v6=layout.HAIRPIN_V6,
        port_min=layout.EXTERNAL_PORT_MIN,
        port_max=layout.EXTERNAL_PORT_MAX,
        pkt_mark=f"{layout.EXTERNAL_PKT_MARK:#x}",
    )


_PAGE = """# The pipeline

Generated from `dunlin/pipeline/layout.py` and `dunlin/openflow/cookie.py` by `make docs`; do not
edit.

## Tables of br-int
| table | name | what it does |
|---|---|---|
{tables}

A packet of a known connection visits Classifier, UnSNAT, Conntrack, ConntrackState and L3Forward:
load balancing and policy are for new connections only.

```
Classifier ─┬─ ARP/ND ─> ARPResponder, NDResponder ─> NDReply ─> back
            ├─ from outside to the node ─> ct(EXTERNAL) ─> ExternalReply ─> Conntrack, or the node
            └─> UnSNAT ─> Conntrack ─ct(MAIN,nat)─> ConntrackState
                  established ──────────────────────────────────────────────┐
                  new ─> ServiceLB ─group─ct(commit,nat)─> EndpointSelected │
                            └────────────> Egress… <─────────────┘          │
                                           Ingress… (policy) ─> Commit ─────┤
                                                                            v
          Pod, gateway <────────────────────────────────────────────── L3Forward
          other node <──────────────────────────────────────────── NextHop <┤
                      uplink <─ct(EXTERNAL,snat)─ External <───── Beyond <──┘
```

## Conntrack zones
| zone | id |
|---|---|
{zones}

## ct_mark in zone MAIN
| mark | value | mask |
|---|---|---|
{marks}

## Reserved
| what | value |
|---|---|
| source of hairpin connections | {hairpin_v4}, {hairpin_v6} |
| source ports on a node's address for its Pods' connections outside | {port_min}-{port_max} |
| pkt_mark of what br-ext passes to br-int | {pkt_mark} |

## Priorities
| name | priority |
|---|---|
{priorities}

## Cookies
Bits 63-56 are {owner}; bits 55-48 the kind of the intent; bits 47-0 the first 48 bits of SHA-256 of
the intent's id.

| kind | number |
|---|---|
{kinds}
"""

PAGES = {"docs/pipeline.md": pipeline_page, **reference.FILES, **dashboards.FILES, **chart.FILES}


def main(arguments: list[str]) -> int:
    """Write every page; with --check only compare, and fail where one is out of date."""
    stale = []
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if path.exists() and path.read_text() == text:
            continue
        if "--check" in arguments:
            stale.append(name)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
    if stale:
        sys.stderr.write(f"out of date, run `make docs`: {', '.join(stale)}\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
