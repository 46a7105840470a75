"""
What a change would do, before it is applied: `dunlin plan`. Pure. docs/plan.md, ADR 0021.

    ports.py     sets of protocols and ports, as bits
    sides.py     how policies see a Pod, or addresses outside: what selects it, what it belongs to
    judge.py     what one side may send to another, from policies as values
    reach.py     the pairs whose reachability changes, by classes of equal sides, told by workload
    flows.py     the flows that come and go on each switch
    objects.py   manifests -> events of the planner
    preview.py   all of it
"""
