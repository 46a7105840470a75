"""Fixtures of all tests."""

from hypothesis import settings

from tests.fixtures import ovs_build

pytest_plugins = ("tests.fixtures.nats", "tests.fixtures.ovs_dummy")

ovs_build.from_environment()

# No limit for one example: a busy machine is no fault of the code; pytest-timeout bounds the test.
settings.register_profile("dunlin", deadline=None)
settings.load_profile("dunlin")
