"""The log: structlog on standard error, one event a line. Writing it never blocks the caller."""

import atexit
import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import MutableMapping
from typing import Any, Final, TextIO, cast

import structlog

from flopwatch.threads import BoundedThread


# A start on 16 GPUs logs some 50 lines. A reader this far behind has stopped reading.
_LINES_MAX: Final = 1000
_EXIT_SECONDS: Final = 1.0
_STANDARD_ERROR: Final = 2
# Severities of syslog(3), which journald reads as a prefix of each line (sd-daemon(3)).
_JOURNAL_PREFIXES: Final = {
    "critical": "<2>",
    "error": "<3>",
    "warning": "<4>",
    "info": "<6>",
    "debug": "<7>",
}


class LogWriter:
    """Writes lines to a file descriptor on its own thread.

    A pipe that is not drained, or a stopped terminal, blocks this thread and no other: lines beyond
    the queue are dropped and counted. When the reader comes back, one line says how many were lost.
    A closed descriptor raises nothing.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[bytes] = deque()
        self._writing = False
        self._unreported = 0
        self._changed = threading.Condition()
        self.dropped = 0
        """Lines that were lost since the start."""

    def start(self) -> None:
        """Start writing. If no thread can start, lines are dropped and counted."""
        with contextlib.suppress(RuntimeError):
            BoundedThread(target=self._run, name="log-writer").start()

    def write(self, text: str) -> int:
        """Queue a line; never waits for the reader."""
        with self._changed:
            if len(self._lines) >= _LINES_MAX:
                self.dropped += 1
                self._unreported += 1
            else:
                self._lines.append(text.encode(errors="backslashreplace"))
                self._changed.notify_all()
        return len(text)

    def flush(self) -> None:
        """Nothing to do: lines are written as they come."""

    def drain(self, seconds: float) -> bool:
        """Wait until everything queued was written, but no longer than given; whether it was."""
        deadline = time.monotonic() + seconds
        with self._changed:
            return self._changed.wait_for(
                lambda: not self._lines and not self._writing, deadline - time.monotonic()
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                self._writing = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._lines)
                data = b"".join(self._lines)
                self._lines.clear()
                lost, self._unreported = self._unreported, 0
                self._writing = True
            if lost:
                data += f"event=log_lines_dropped level=warning lines={lost}\n".encode()
            self._write(data)

    def _write(self, data: bytes) -> None:
        # By the descriptor: Python's own stream has a lock that a blocked write would keep.
        while data:
            try:
                data = data[os.write(self._descriptor, data) :]
            except BlockingIOError:  # a descriptor that another process made non-blocking
                time.sleep(0.05)
            except OSError:
                return


def set_up_logging(level: str, format_: str) -> LogWriter:
    """Write events of this level and above in this format: auto, console, logfmt or json.

    Returns the writer, for its count of dropped lines and for the last `drain`.
    """
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
        renderer: structlog.typing.Processor = structlog.processors.JSONRenderer()
        if format_ == "logfmt":
            renderer = structlog.processors.LogfmtRenderer(
                key_order=["timestamp", "level", "event"], bool_as_flag=False
            )
        processors.append(_for_journal(renderer) if _is_journal() else renderer)
    writer = LogWriter(_STANDARD_ERROR)
    writer.start()
    # For commands that end by themselves; the daemon drains before it ends its process.
    atexit.register(writer.drain, _EXIT_SECONDS)
    structlog.configure(
        processors=processors,
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=structlog.WriteLoggerFactory(file=cast(TextIO, writer)),
        cache_logger_on_first_use=True,
    )
    return writer


def _is_journal() -> bool:
    """Whether standard error goes to journald, by the device and inode that systemd names."""
    try:
        status = os.fstat(_STANDARD_ERROR)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _for_journal(renderer: structlog.typing.Processor) -> structlog.typing.Processor:
    """Put the severity before the line, so that `journalctl -p warning` finds it."""

    def render(logger: Any, name: str, event: MutableMapping[str, Any]) -> str:
        prefix = _JOURNAL_PREFIXES.get(str(event.get("level")), "")
        return prefix + str(renderer(logger, name, event))

    return render
