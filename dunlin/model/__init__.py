"""Frozen types that every part of Dunlin shares: identifiers, addresses, Kubernetes words."""
