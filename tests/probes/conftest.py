"""Logging as these tests need it, whatever earlier tests have configured."""

import sys

import pytest
import structlog


@pytest.fixture(autouse=True)
def plain_logging():
    """structlog's defaults, and loggers that have not cached another configuration."""
    structlog.reset_defaults()
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "probes" and hasattr(module, "log"):
            # A lazy logger that was used with `cache_logger_on_first_use` keeps its first `bind`.
            vars(module.log).pop("bind", None)
