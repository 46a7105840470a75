"""
How long conntrack remembers closed TCP connections: longer than an endpoint's TIME_WAIT.

docs/tune.md says why, in which zones, and what it costs.
"""
