"""What all tests share."""

import pytest
from hypothesis import HealthCheck, settings


# Timings are for benchmarks: a machine that is busy elsewhere must not fail a property.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of ours."""
    parser.addoption(
        "--update-golden", action="store_true", help="write golden files anew instead of comparing"
    )
