"""
ipam: pools -> node blocks -> Pod addresses.

In: `dunlin.v1.fact.>`: node, pod, attachment, switch, servicecidr, sync, and its own ledger;
`dunlin.v1.rpc.ipam.{allocate,release,blocks}`.
Out: `dunlin.v1.fact.{block,address}.>` (the ledger, by compare-and-set only),
`dunlin.v1.intent.<node>.endpoint.<interface>`, `dunlin.v1.progress.ipam.<replica>`.

Invariants: no address has two owners, no owner two addresses of a family, whatever crashes when;
an address is given only when nothing that is known uses it (core/violations.py says it all).
"""
