"""The dunlin command line."""
