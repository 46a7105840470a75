"""
Ratios, measured side by side in one run: `python -m bench [NAME…] [--quick] [--json FILE]`.

The ways that are compared take turns (A B A B …) on the same machine within the same minutes, so a
ratio inside one row means something also where the machine is shared. No test asserts a figure.
"""
