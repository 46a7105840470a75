"""The outside worlds of flowctl."""
