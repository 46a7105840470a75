"""
Watcher: the only reader of the Kubernetes API for facts about the cluster.

In: lists and watches of nodes, namespaces, Pods, Services, EndpointSlices, NetworkPolicies,
ServiceCIDRs; its own facts in DUNLIN_FACTS. Out: `dunlin.v1.fact.<kind>.<namespace|_>.<name>`,
tombstones, `dunlin.v1.fact.sync._.watcher`. Answers `dunlin.v1.rpc.watcher.sync`.

Invariants: nothing is published that equals what the stream holds; a fact is deleted only when the
API said so, by an event or by a complete list; a bad object keeps its last good fact; only the
holder of lease `watcher` writes, and every write is a compare-and-set.
"""
