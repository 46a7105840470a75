"""What load balancers ask a node: healthCheckNodePorts of Services, and kube-proxy's healthz."""
