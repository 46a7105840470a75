"""
The lab's embedded Kubernetes API server: one process, no container, no etcd.

`python -m dunlin_lab.apiserver --port P --data-dir D` serves the kinds of `resources.py` as a
kube-apiserver does (ADR 0002), and runs the few controllers the lab needs. Its truth is
tests/contract/kube_api/: exchanges recorded from a real control plane, replayed.

Layers, each importing only those before it: values (`resources`, `errors`, `selectors`, `patches`,
`strategic`, `apply`), `store` + `journal` (revisions), `registry` (what a write means),
`controllers/`, `http` (wire), `__main__` (wiring). docs/LIMITS.md says what it does not do.
"""
