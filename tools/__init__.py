"""What the repository needs to be built and documented; no service imports it."""
