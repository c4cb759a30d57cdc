"""Where the project's log lines go in these processes: warnings to standard error, as answers are on standard output."""

import sys

import structlog


_WARNING = 30


def log_to_stderr() -> None:
    """Configure logging that way."""
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(_WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
