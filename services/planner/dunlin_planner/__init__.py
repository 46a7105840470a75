"""
Planner: turns facts into what switches must do.

In: `dunlin.v1.fact.>`: node, switch, block, servicecidr, service, endpointslice, networkpolicy,
sync. Out: `dunlin.v1.intent.<node>.switch.pipeline`, `dunlin.v1.intent.all.route.<node>`,
`dunlin.v1.intent.all.service.<ServicePort>`; `dunlin.v1.progress.planner.<replica>`.

Invariants: intents are a function of the newest facts alone (never of their order or repetition);
one change costs what depends on it, not the size of the cluster; nothing is withdrawn before the
whole cluster has been read. `core/` is pure, `shell.py` does the talking.
"""
