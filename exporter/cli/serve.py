"""`flopwatch serve`: run the daemon."""

import argparse
import contextlib
import ctypes
import gc
from typing import Any

from exporter.cli.options import add_config_flags, config_origin, load_startable


# mallopt(3), of glibc only.
_M_ARENA_MAX = -8
# The last lines go to a reader that still reads; one that does not is not waited for.
_LOG_GRACE_SECONDS = 0.3


def add_parser(subparsers: Any) -> None:
    """Register the subcommand."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "serve", help="run the exporter", description="Sample the devices and serve the metrics."
    )
    add_config_flags(parser)
    parser.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Serve until told to end."""
    _keep_one_malloc_arena()
    from exporter.logging_setup import set_up_logging

    origin = config_origin(parsed)
    config = load_startable(origin)
    log_writer = set_up_logging(config.log_level, config.log_format)
    from exporter.app import Daemon, end_process

    daemon = Daemon(config, origin)
    # What was loaded so far stays: the collector need not look at it again every few seconds.
    gc.collect()
    gc.freeze()
    code = daemon.run()
    log_writer.drain(_LOG_GRACE_SECONDS)
    end_process(code)
    return code


def _keep_one_malloc_arena() -> None:
    """One heap for all threads: each thread's own would keep what its largest answer needed.

    Threads allocate under the interpreter's lock anyway. Saves 5 MB after fifty scrapers at once.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
