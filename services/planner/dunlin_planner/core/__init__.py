"""The pure planner: `step` (step.py) and one module a feature."""
