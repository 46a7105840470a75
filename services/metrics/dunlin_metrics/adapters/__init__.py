"""The outside worlds of the metrics service, one file each."""
