"""The log: structlog on standard error, one event a line."""

import contextlib
import io
import logging
import sys
from typing import TextIO, cast

import structlog


class _Unbreakable(io.TextIOBase):
    """Standard error, or silence where nobody listens any more: what is lost is the log, not the daemon."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


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
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, _Unbreakable(sys.stderr))),
        cache_logger_on_first_use=True,
    )
