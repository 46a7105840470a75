"""Fixtures of all tests."""

from hypothesis import settings

pytest_plugins = ("tests.fixtures.nats", "tests.fixtures.ovs_dummy")

# No limit for one example: a busy machine is no fault of the code; pytest-timeout bounds the test.
settings.register_profile("dunlin", deadline=None)
settings.load_profile("dunlin")
