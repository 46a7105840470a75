"""
NetworkPolicies and ClusterNetworkPolicies: facts -> policy intents. Pure.

    model.py     policies as values: selectors, groups, peers, ports, rules
    parse.py     the spec of a NetworkPolicy -> Policy; parse_cluster.py: of a ClusterNetworkPolicy
    groups.py    which Pods a group holds; one Pod's change costs what its labels select
    networks.py  longest prefixes: which ipBlocks hold an address
    index.py     everything together; says which units a fact touches
    plan.py      one unit -> its intent
"""
