"""Prometheus series, the topology API and the web page."""
