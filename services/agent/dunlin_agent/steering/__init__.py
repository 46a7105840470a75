"""
What the node's kernel sends to br-int so that the node's own processes reach Services. ADR 0014.

Rules and routes for processes of this node alone: NodePorts at its own addresses, external and load
balancer IPs. Facts in: intents. `core`: what the kernel must hold; `kernel`: how it is told.
"""
