"""
UDP connections of Services that have become stale unnoticed: found by looking, and removed.

flowctl removes at once what a change makes stale; what changes while it has no session with the
switch is found here. docs/services-runtime.md.
"""
