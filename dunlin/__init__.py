"""Dunlin: the shared vocabulary of its services."""
