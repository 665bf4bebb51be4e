"""Settings of the whole suite: the `slow` marker (run with --slow) and the hypothesis profiles.

`--hypothesis-profile=deep` draws many more examples, anew each time; the default profile is reproducible.
"""

import os

import pytest
from hypothesis import HealthCheck, settings

# Nothing is said on stderr about compiling, here and in other processes; `test_compile_notice` has it said.
os.environ["NUMBA_HINV_COMPILE_NOTICE"] = "0"

settings.register_profile(
    "default",
    deadline=None,
    max_examples=40,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)
settings.register_profile("deep", settings.get_profile("default"), max_examples=2000, derandomize=False)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow as well")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: takes minutes; run with --slow")
    config.addinivalue_line("markers", "gpu: needs a real GPU; skipped without one")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
