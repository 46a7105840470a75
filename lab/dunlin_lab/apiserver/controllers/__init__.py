"""
What kube-controller-manager and kube-scheduler do, as far as the lab needs it.

Each module has a pure core, functions from what is to what shall be, and a `Controller` that calls
it when something it reads has changed. docs/LIMITS.md says what they leave out.
"""
