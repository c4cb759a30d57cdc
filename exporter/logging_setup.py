"""The log: structlog on standard error, one event a line."""

import logging
import sys

import structlog


def set_up_logging(level: str, format_: str) -> None:
    """Write events of this level and above in this format: auto, console, logfmt or json."""
    if format_ == "auto":
        format_ = "console" if sys.stderr.isatty() else "logfmt"
    processors: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if format_ == "console":
        processors.append(structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()))
    else:
        # A traceback is one field of one line: logs are read by machines.
        processors.append(structlog.processors.format_exc_info)
        if format_ == "json":
            processors.append(structlog.processors.JSONRenderer())
        else:
            processors.append(
                structlog.processors.LogfmtRenderer(
                    key_order=["timestamp", "level", "event"], bool_as_flag=False
                )
            )
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
