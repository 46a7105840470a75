"""
flowctl: owns the OpenFlow sessions.

In: `intent.>`, `progress.>`, switch facts; OpenFlow sessions that switches open (or that it opens).
Out: flows and groups, `applied.<node>`; answers `rpc.flowctl.barrier.<node>`, `rpc.flowctl.wait`.

Invariants: a switch without `switch` intent is not touched; nothing is deleted before ipam and
planner have claimed completeness; make before break, in atomic bundles; one replica writes to a
switch at a time (lease, OpenFlow's generation_id as its fence); a dead flowctl leaves all as it is.
"""
