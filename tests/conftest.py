"""Fixtures and options for all tests."""

import sys
from typing import Any

import pytest
import structlog
from hypothesis import HealthCheck, settings


# Timings are for benchmarks: a machine that is busy elsewhere must not fail a property.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# A command that a test runs in this process sets its own log level: loggers must not remember it.
_configure = structlog.configure
structlog.configure = lambda **options: _configure(
    **{**options, "cache_logger_on_first_use": False}
)


def pytest_runtest_teardown() -> None:
    """Each test logs as if it was the first."""
    structlog.reset_defaults()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Our own options."""
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files anew instead of comparing"
    )


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """Report the progress of collection: each worker collects six thousand tests on a busy machine."""
    print(f"{node.gateway.id} has collected {len(ids)} tests", file=sys.stderr, flush=True)
