"""Fixtures of all tests."""

pytest_plugins = ("tests.fixtures.nats", "tests.fixtures.ovs_dummy")
