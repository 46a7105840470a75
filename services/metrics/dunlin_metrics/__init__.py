"""
Metrics: what the network does, for Prometheus, REST and people. Read only; any number of replicas.

In: facts (node, pod, switch), all intents, `applied`; counters by REST from every flowctl. Out:
/metrics, /v1/topology, /v1/traffic/…, /v1/services, /v1/policies, the page at /.

Invariants: a counter never falls and never counts a packet twice, whatever is installed anew,
polled twice or restarted; what it cannot tell it leaves out; a flowctl that is away costs
freshness, nothing else.
"""
