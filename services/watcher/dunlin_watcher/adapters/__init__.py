"""The outside worlds of the watcher, one file each."""
