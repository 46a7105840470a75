"""The node: OVSDB, Pod interfaces, the CNI server."""
