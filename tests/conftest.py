"""Fixtures of all tests."""

import pytest
from hypothesis import settings
from xdist.remote import Producer

from tests.fixtures import ovs_build
from tests.parallel import TwoHalves

pytest_plugins = ("tests.fixtures.nats", "tests.fixtures.ovs_dummy")

ovs_build.from_environment()

# No limit for one example: a busy machine is no fault of the code; pytest-timeout bounds the test.
settings.register_profile("dunlin", deadline=None)
settings.load_profile("dunlin")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> TwoHalves:
    """`pytest -n 2`: what each worker runs is the same every time."""
    return TwoHalves(config, log)
