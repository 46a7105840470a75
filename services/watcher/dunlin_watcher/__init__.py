"""The only reader of the Kubernetes API: lists, watches, publishes facts."""
