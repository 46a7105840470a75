"""What each kind means beyond its metadata: shape, defaults, validation."""
